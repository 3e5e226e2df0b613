-- Rebuilds: a target is built anew aside, and takes the old one's place.

ALTER TABLE queue_backfill_data
    DROP CONSTRAINT queue_backfill_data_mode_check,
    ADD CONSTRAINT queue_backfill_data_mode_check CHECK (mode IN ('BACKFILL', 'RESYNC', 'RELOAD', 'REBUILD')),
    ADD COLUMN kept_table text;                               -- where the old table is kept until that is confirmed
