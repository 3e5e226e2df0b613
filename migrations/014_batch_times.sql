-- How long batches take at a destination: the mean of those since the report before.

ALTER TABLE stream_offsets
    ADD COLUMN batch_ms bigint,
    ADD CONSTRAINT stream_offsets_batch_check CHECK (batch_ms >= 0);

ALTER TABLE system_metrics
    ADD COLUMN batch_ms bigint,
    ADD CONSTRAINT system_metrics_batch_check CHECK (batch_ms >= 0);
