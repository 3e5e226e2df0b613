-- How a table sync shapes its rows beyond filter and custom SQL, and the key of a source's hash masks (encrypted).

ALTER TABLE pipelines_destination_table_sync ADD COLUMN shape jsonb NOT NULL DEFAULT '{}';

ALTER TABLE sources ADD COLUMN mask_key text;

DROP TRIGGER rosetta_generation_update ON pipelines_destination_table_sync;
CREATE TRIGGER rosetta_generation_update AFTER UPDATE ON pipelines_destination_table_sync
    FOR EACH ROW
    WHEN (NEW.origin = 'DECLARED'
          AND (OLD.table_name, OLD.table_name_target, OLD.filter_sql, OLD.custom_sql, OLD.shape)
              IS DISTINCT FROM (NEW.table_name, NEW.table_name_target, NEW.filter_sql, NEW.custom_sql, NEW.shape))
    EXECUTE FUNCTION rosetta_table_sync_changed();
