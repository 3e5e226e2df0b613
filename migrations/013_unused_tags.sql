-- A tag that no table sync carries any more is removed by itself, whatever took it off: a change, a removal, a cascade.

CREATE FUNCTION rosetta_unused_tag() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- One that another transaction is about to give to a table is locked by it, and stays.
    DELETE FROM tbltag_list WHERE id IN (
        SELECT t.id FROM tbltag_list t
        WHERE t.id = OLD.tag_id
          AND NOT EXISTS (SELECT 1 FROM pipelines_destination_table_sync_tag st WHERE st.tag_id = t.id)
        FOR UPDATE SKIP LOCKED);
    RETURN NULL;
END $$;

-- At the commit, as a tag that moves from one table to another is without any for a moment.
CREATE CONSTRAINT TRIGGER rosetta_unused AFTER DELETE ON pipelines_destination_table_sync_tag
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION rosetta_unused_tag();

DELETE FROM tbltag_list t
WHERE NOT EXISTS (SELECT 1 FROM pipelines_destination_table_sync_tag st WHERE st.tag_id = t.id);
