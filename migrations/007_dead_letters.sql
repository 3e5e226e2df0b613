-- What waits in dead-letter queues, as the pipelines report it; the destinations hold the truth, Redis the changes.

CREATE TABLE dead_letter_tables (
    pipeline_destination_id bigint NOT NULL REFERENCES pipeline_destinations (id) ON DELETE CASCADE,
    source_schema           text NOT NULL,
    source_table            text NOT NULL,
    target_schema           text NOT NULL,
    target_table            text NOT NULL,
    waiting_keys            bigint NOT NULL,
    entries                 bigint NOT NULL,
    lost_entries            bigint NOT NULL DEFAULT 0,        -- marked at the destination, and gone from Redis
    oldest_at               timestamptz,
    reason                  text,                              -- why the first of them was refused; no row values
    updated_at              timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline_destination_id, target_schema, target_table),
    CONSTRAINT dead_letter_tables_counts_check CHECK (waiting_keys > 0 AND entries >= waiting_keys AND lost_entries >= 0)
);

CREATE TABLE dead_letter_queues (
    pipeline_destination_id bigint PRIMARY KEY REFERENCES pipeline_destinations (id) ON DELETE CASCADE,
    state                   text NOT NULL,
    problem                 text,
    updated_at              timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dead_letter_queues_state_check CHECK (state IN ('OK', 'NOT_CONFIGURED', 'UNAVAILABLE', 'NOT_DURABLE')),
    CONSTRAINT dead_letter_queues_problem_check CHECK (state IN ('OK', 'NOT_CONFIGURED') OR problem IS NOT NULL)
);

CREATE TRIGGER rosetta_touch BEFORE UPDATE ON dead_letter_tables FOR EACH ROW EXECUTE FUNCTION rosetta_touch();
CREATE TRIGGER rosetta_touch BEFORE UPDATE ON dead_letter_queues FOR EACH ROW EXECUTE FUNCTION rosetta_touch();
