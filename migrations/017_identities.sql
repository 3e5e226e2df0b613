-- Names are for people and may change; an identity never does, and what a pipeline keeps on other servers bears it.
-- Another row may take a name that was given up while its first bearer still has the identity: it gets another identity.

ALTER TABLE pipelines ADD COLUMN identity text NOT NULL DEFAULT '';       -- '': the trigger makes one of the name
ALTER TABLE destinations ADD COLUMN identity text NOT NULL DEFAULT '';
UPDATE pipelines SET identity = name;
UPDATE destinations SET identity = name;
ALTER TABLE pipelines
    ADD CONSTRAINT pipelines_identity_key UNIQUE (identity),
    ADD CONSTRAINT pipelines_identity_check CHECK (identity ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$');
ALTER TABLE destinations
    ADD CONSTRAINT destinations_identity_key UNIQUE (identity),
    ADD CONSTRAINT destinations_identity_check CHECK (identity ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$');

CREATE FUNCTION rosetta_identity() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    taken  boolean;
    number integer := 1;
    ending text;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.identity <> OLD.identity THEN
            RAISE EXCEPTION 'the identity of % in table % cannot change: positions are kept under it',
                OLD.name, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF NEW.identity <> '' THEN
        RETURN NEW;
    END IF;
    NEW.identity := NEW.name;
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %I.%I WHERE identity = $1)', TG_TABLE_SCHEMA, TG_TABLE_NAME)
            INTO taken USING NEW.identity;
        EXIT WHEN NOT taken;
        number := number + 1;
        ending := '-' || number;
        NEW.identity := left(NEW.name, 63 - length(ending)) || ending;
    END LOOP;
    RETURN NEW;
END $$;

CREATE TRIGGER rosetta_identity BEFORE INSERT OR UPDATE ON pipelines
    FOR EACH ROW EXECUTE FUNCTION rosetta_identity();
CREATE TRIGGER rosetta_identity BEFORE INSERT OR UPDATE ON destinations
    FOR EACH ROW EXECUTE FUNCTION rosetta_identity();
