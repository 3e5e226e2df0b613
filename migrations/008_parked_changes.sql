-- Changes of destinations that are away for long, parked in Redis, as the pipelines report them.

ALTER TABLE dead_letter_queues
    ADD COLUMN parked_batches bigint NOT NULL DEFAULT 0,
    ADD COLUMN parked_bytes   bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT dead_letter_queues_parked_check CHECK (parked_batches >= 0 AND parked_bytes >= 0);
