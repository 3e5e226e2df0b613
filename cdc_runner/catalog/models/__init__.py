"""SQLAlchemy models of the config database; the tables themselves are made by `migrations/`."""

from cdc_runner.catalog.models.base import Base
from cdc_runner.catalog.models.configuration import (
    Destination,
    Pipeline,
    PipelineDestination,
    Preset,
    Setting,
    Source,
    TableSync,
    TableSyncTag,
    Tag,
)
from cdc_runner.catalog.models.dead_letter import DeadLetterQueueState, DeadLetterTable
from cdc_runner.catalog.models.engine import (
    BackfillChunk,
    CaptureOffset,
    PipelineMetadata,
    PipelineProgress,
    QueueBackfill,
    RunnerHeartbeat,
    RunnerLease,
    StreamOffset,
)
from cdc_runner.catalog.models.notification import Notification, NotificationChannel, NotificationDelivery
from cdc_runner.catalog.models.observation import (
    CreditSnowflake,
    CreditSnowflakePart,
    DataFlowRecord,
    JobMetric,
    SlotRecoveryPlan,
    SystemMetric,
    WalMetric,
    WalMonitor,
    WorkerHealth,
)
from cdc_runner.catalog.models.reconcile import (
    ReconcileFence,
    ReconcileFenceDestination,
    ReconcileFenceKeys,
    Reconciliation,
    ReconciliationTable,
)
from cdc_runner.catalog.models.schema_history import SchemaEvolution, TableMetadata

__all__ = [
    "BackfillChunk",
    "Base",
    "CaptureOffset",
    "CreditSnowflake",
    "CreditSnowflakePart",
    "DataFlowRecord",
    "DeadLetterQueueState",
    "DeadLetterTable",
    "Destination",
    "JobMetric",
    "Notification",
    "NotificationChannel",
    "NotificationDelivery",
    "Pipeline",
    "PipelineDestination",
    "PipelineMetadata",
    "PipelineProgress",
    "Preset",
    "QueueBackfill",
    "ReconcileFence",
    "ReconcileFenceDestination",
    "ReconcileFenceKeys",
    "Reconciliation",
    "ReconciliationTable",
    "RunnerHeartbeat",
    "RunnerLease",
    "SchemaEvolution",
    "Setting",
    "SlotRecoveryPlan",
    "Source",
    "StreamOffset",
    "SystemMetric",
    "TableMetadata",
    "TableSync",
    "TableSyncTag",
    "Tag",
    "WalMetric",
    "WalMonitor",
    "WorkerHealth",
]
