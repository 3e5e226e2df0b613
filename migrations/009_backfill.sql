-- Backfills: one row a target table, worked off by the pipeline process.

ALTER TABLE queue_backfill_data
    ADD COLUMN mode           text NOT NULL DEFAULT 'BACKFILL',
    ADD COLUMN target_schema  text,
    ADD COLUMN target_table   text,
    ADD COLUMN changed_record bigint NOT NULL DEFAULT 0,      -- rows that were another at the target, and were written
    ADD COLUMN deleted_record bigint NOT NULL DEFAULT 0,      -- rows that the source does not have
    ADD COLUMN refused_record bigint NOT NULL DEFAULT 0,      -- rows in the dead-letter queue
    ADD COLUMN chunks         integer NOT NULL DEFAULT 0,
    ADD COLUMN chunks_done    integer NOT NULL DEFAULT 0,
    ADD COLUMN seconds        double precision NOT NULL DEFAULT 0,   -- at work, without what was waited for a turn
    ADD COLUMN since_xid      bigint,                         -- rows changed from here on are read once more at the end
    ADD COLUMN passes         integer NOT NULL DEFAULT 0,     -- how often that was done
    ADD COLUMN note           text,                           -- what it waits for
    ADD COLUMN requested_by   text,
    ADD COLUMN announced_at   timestamptz,                    -- a run of Dagster follows it
    ADD CONSTRAINT queue_backfill_data_mode_check CHECK (mode IN ('BACKFILL', 'RESYNC', 'RELOAD')),
    ADD CONSTRAINT queue_backfill_data_results_check
        CHECK (changed_record >= 0 AND deleted_record >= 0 AND refused_record >= 0 AND chunks >= chunks_done);

-- One at a time for each target table.
CREATE UNIQUE INDEX queue_backfill_data_target_idx
    ON queue_backfill_data (pipeline_destination_id, target_schema, target_table)
    WHERE status IN ('PENDING', 'EXECUTING');
CREATE INDEX queue_backfill_data_finished_idx ON queue_backfill_data (finished_at) WHERE finished_at IS NOT NULL;

ALTER TABLE backfill_chunks ADD COLUMN filenode bigint;       -- of the relation when it was cut into chunks
