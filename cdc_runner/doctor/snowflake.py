"""Checks of a Snowflake destination: key, account, warehouse, rights, streaming, limits, target tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdc_runner.destinations.snowflake import administration, state
from cdc_runner.destinations.snowflake.objects import SERVERLESS
from cdc_runner.destinations.snowflake.rows import Shape
from cdc_runner.destinations.snowflake.session import Session
from cdc_runner.destinations.snowflake.sql import literal
from cdc_runner.destinations.snowflake.types import TEXT
from cdc_runner.doctor.finding import Findings, names
from cdc_runner.errors import RosettaError
from cdc_runner.schema import TableId, TableSchema, quote_identifier
from cdc_runner.spec import DestinationSpec, ResolvedSync, SnowflakeAddress

MAX_PIPES = 50_000
_TABLES_TO_NOTE = 1_000


def check_snowflake(
    spec: DestinationSpec,
    pipeline: str,
    syncs: Sequence[ResolvedSync],
    schemas: Mapping[TableId, TableSchema],
    found: Findings,
) -> None:
    """Check a Snowflake destination for the tables that it is to take, without changing anything.

    Args:
        spec: the destination.
        pipeline: identity of the pipeline.
        syncs: source and target tables.
        schemas: schemas of the source tables.
        found: takes the findings.
    """
    address = spec.snowflake
    try:
        found.ok("private_key", f"fingerprint {administration.key_fingerprint(address)}")
        session = Session(address, pipeline, spec.identity)
    except RosettaError as error:
        found.failure("private_key", error)
        return
    try:
        if not _check_account(session, address, found):
            return
        _check_streaming(address, found)
        _check_rights(session, address, found)
        _check_grants(session, address, found)
        _check_tables(session, syncs, schemas, found)
        _check_left_over(session, syncs, found)
    except RosettaError as error:
        found.failure("checks", error)
    finally:
        session.close()


def _check_left_over(session: Session, syncs: Sequence[ResolvedSync], found: Findings) -> None:
    """Name what is still there of tables that are not fed any more."""
    objects, fed = session.objects, {sync.target for sync in syncs}
    if not objects.columns(session.store.table):
        return
    for known in session.store.tables():
        made = objects.names(known.sync)
        if known.sync.target in fed or not objects.columns(made.landing):
            continue
        found.warning(
            "left_over",
            f"table {known.sync.target} is not fed any more, and {made.landing.name} is still there with "
            f"{objects.unmerged(known.sync)} rows that are not merged",
            "Start the pipeline: it merges these rows and removes what it made; why it could not is in its log "
            "(snowflake.left_over). To give the rows up: "
            f"DROP TASK {made.task.quoted}; DROP STREAM {made.stream.quoted}; DROP TABLE {made.landing.quoted};",
        )


def _check_account(session: Session, address: SnowflakeAddress, found: Findings) -> bool:
    try:
        row = session.sql.run(
            "SELECT CURRENT_VERSION(), CURRENT_ROLE(), CURRENT_WAREHOUSE()", "tell its version", limit_seconds=60
        ).rows[0]
    except RosettaError as error:
        if error.detail.get("status") == 401:
            fingerprint = administration.key_fingerprint(address)
            found.error(
                "connection",
                f"account {address.account} does not take the key of user {address.user}",
                f"ALTER USER {quote_identifier(address.user.upper())} SET RSA_PUBLIC_KEY = '…'; DESC USER must show "
                f"RSA_PUBLIC_KEY_FP = {fingerprint} (or RSA_PUBLIC_KEY_2_FP while keys are rotated). The clock of "
                "this machine must be right within a minute.",
            )
        else:
            found.failure("connection", error)
        return False
    found.ok("connection", f"account {address.account} (version {row[0]}) answers {address.user} as role {row[1]}")
    if row[2] is None and address.warehouse is None:
        found.error(
            "warehouse",
            "no warehouse is set and the user has no default one",
            "Set `warehouse` of the destination, or ALTER USER … SET DEFAULT_WAREHOUSE = …;",
        )
    else:
        found.ok("warehouse", f"statements run in {address.warehouse or row[2]}")
    return True


def _check_streaming(address: SnowflakeAddress, found: Findings) -> None:
    try:
        found.ok("streaming", f"rows go to {administration.check_ingest(address)}")
    except RosettaError as error:
        found.failure("streaming", error)


def _check_rights(session: Session, address: SnowflakeAddress, found: Findings) -> None:
    role = quote_identifier(address.role) if address.role else "…"
    places = {
        (address.database, session.naming.fold(address.schema)),
        (address.landing_database or address.database, address.landing_schema or address.schema),
    }
    for database, schema in sorted(places):
        quoted = f"{quote_identifier(database)}.{quote_identifier(schema)}"
        try:
            count = session.sql.run(
                f"SELECT COUNT(*) FROM {quote_identifier(database)}.INFORMATION_SCHEMA.SCHEMATA "
                f"WHERE SCHEMA_NAME = {literal(schema)}",
                f"look for schema {schema}",
            ).value
        except RosettaError:
            found.error(
                "database",
                f"database {database} does not exist, or the role may not use it",
                f"GRANT USAGE ON DATABASE {quote_identifier(database)} TO ROLE {role};",
            )
            continue
        if count == "0":
            found.warning(
                "schema",
                f"schema {database}.{schema} is not there for this role; a start tries to make it",
                f"CREATE SCHEMA {quoted}; GRANT USAGE, CREATE TABLE, CREATE STREAM, CREATE TASK, CREATE PIPE "
                f"ON SCHEMA {quoted} TO ROLE {role}; GRANT EXECUTE TASK ON ACCOUNT TO ROLE {role};",
            )
        else:
            found.ok("schema", f"schema {database}.{schema} can be used")


def _check_grants(session: Session, address: SnowflakeAddress, found: Findings) -> None:
    """Compare what is granted to the role with what it needs; what it has through other roles is not listed there."""
    role = address.role or session.sql.run("SELECT CURRENT_ROLE()", "tell the role").value or ""
    try:
        given = session.sql.run(f"SHOW GRANTS TO ROLE {quote_identifier(role)}", "list what is granted to the role")
        places = [given.columns.index(name) for name in ("PRIVILEGE", "GRANTED_ON", "NAME")]
    except (RosettaError, ValueError):
        found.warning("grants", f"what is granted to role {role} cannot be listed", f"SHOW GRANTS TO ROLE {role};")
        return
    granted = {tuple(str(row[place]).replace('"', "").upper() for place in places) for row in given.rows}
    missing = [
        (privilege, kind, name)
        for privilege, kind, name in _needed(session, address)
        if not {(one, kind, name.upper()) for one in (privilege, "OWNERSHIP")} & granted
        and not (kind == "ACCOUNT" and any(one[:2] == (privilege, kind) for one in granted))
    ]
    if not missing:
        found.ok("grants", f"role {role} has what it needs")
        return
    statements = " ".join(
        f"GRANT {privilege} ON {kind}{'' if kind == 'ACCOUNT' else ' ' + name} TO ROLE {quote_identifier(role)};"
        for privilege, kind, name in missing
    )
    found.warning("grants", f"role {role} is not granted {len(missing)} rights, unless through other roles", statements)


def _needed(session: Session, address: SnowflakeAddress) -> list[tuple[str, str, str]]:
    """Return privilege, kind of object and name of what the role needs."""
    landing = address.landing_database or address.database, address.landing_schema or address.schema
    targets = f"{address.database}.{session.naming.fold(address.schema)}"
    needed = [("USAGE", "DATABASE", one) for one in sorted({address.database, landing[0]})]
    needed += [("USAGE", "SCHEMA", one) for one in sorted({targets, ".".join(landing)})]
    needed.append(("CREATE TABLE", "SCHEMA", targets))
    needed += [(f"CREATE {one}", "SCHEMA", ".".join(landing)) for one in ("TABLE", "STREAM", "TASK", "PIPE")]
    if address.warehouse:
        needed.append(("USAGE", "WAREHOUSE", address.warehouse))
    managed = address.merge_warehouse == SERVERLESS
    needed.append(("EXECUTE MANAGED TASK" if managed else "EXECUTE TASK", "ACCOUNT", ""))
    return list(dict.fromkeys(needed))


def _check_tables(
    session: Session, syncs: Sequence[ResolvedSync], schemas: Mapping[TableId, TableSchema], found: Findings
) -> None:
    known = set()
    if session.objects.columns(session.naming.state(state.TABLE)):
        known = {one.sync.target for one in session.store.tables()}
    for sync in syncs:
        subject = f"table {sync.source}"
        try:
            shape = session.objects.shape(schemas[sync.source], sync)
        except RosettaError as error:
            found.error("columns", error.message, "Rename the column at the source, or leave the table out.", subject)
            continue
        _note_text(shape, subject, found)
        target = session.naming.table(sync.target).target
        if sync.target not in known and session.objects.columns(target):
            found.warning(
                "target",
                f"target {target.name} exists already: it is taken only when it is empty and has every column",
                f"DROP TABLE {target.quoted};",
                subject,
            )
    if len(syncs) > _TABLES_TO_NOTE:
        found.warning(
            "pipes",
            f"{len(syncs)} tables need as many pipes; an account has at most {MAX_PIPES}",
            "Split the tables over accounts when others stream there too.",
        )
    found.ok("target_tables", f"{len(syncs)} tables, of which {len(known)} are known here")


def _note_text(shape: Shape, subject: str, found: Findings) -> None:
    """Say which numbers go as text, for they are the ones that a query would sum."""
    numbers = [
        column.name
        for column in shape.schema.stream_columns
        if column.type_name == "numeric" and shape.carried(column) is TEXT
    ]
    if numbers:
        found.warning(
            "numbers_as_text",
            f"numeric columns without a precision that Snowflake has are kept as text: {names(numbers)}",
            "Give them a precision of at most 38 at the source, or cast them where they are used.",
            subject,
        )
