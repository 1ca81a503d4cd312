"""The inbox's database: what `receive` stores, what `inbox list` shows, and how far polling has come.

The items are DBOS workflows, enqueued by a `DBOSClient`, which needs no running engine: it works in any process of a
web server, also after a fork. Beside DBOS's tables there is one of ours. Nothing here runs a handler.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from attrs import frozen
from dbos import DBOS, DBOSClient, Serializer, WorkflowStatus
from sqlalchemy.exc import SQLAlchemyError

from agentphone._loop_thread import hold_lock_at_fork
from agentphone._timestamps import format_timestamp
from agentphone.errors import ConfigurationError
from agentphone.inbox._engine import close_engine, configuring_all_connections, create_engine
from agentphone.inbox._receiving import Item

DatabaseError = SQLAlchemyError
"""What is raised while the database cannot be used."""
DEFAULT_DATABASE = "sqlite:///agentphone-inbox.db"
DATABASE_VARIABLE = "AGENTPHONE_INBOX_DATABASE"
SCHEMA = "dbos"
"""The schema in PostgreSQL, which DBOS creates; ours is there too, so that no further privilege is needed."""
WORKFLOW = "agentphone.inbox"
POLL_SECONDS = 0.05
"""How often a worker looks for new items."""
RECENT = timedelta(hours=1)
MAX_ORDER = 2**31 - 1
"""The largest priority that DBOS has."""


def resolve_database(database: str | None) -> str:
    """Return the URL of the database: the argument, the environment's, or a file in the current directory.

    Raises:
        ConfigurationError: It is not `sqlite:///FILE` or `postgresql://...`.
        TypeError: It is not a string.
    """
    url = os.environ.get(DATABASE_VARIABLE) or DEFAULT_DATABASE if database is None else database
    if not isinstance(url, str):
        raise TypeError(f"database must be a URL, got {type(url).__name__}")
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest.startswith("///") and (path := rest[3:]) and not path.startswith(":"):
        return f"sqlite:///{Path(path).absolute()}"  # because a daemon changes its working directory later
    if scheme in ("postgresql", "postgresql+psycopg", "postgres") and rest.startswith("//"):
        return f"postgresql:{rest}"
    raise ConfigurationError(  # without the URL, which may contain a password
        f"database must be sqlite:///FILE or postgresql://..., got {scheme or 'nothing'}:... (argument `database` or"
        f" {DATABASE_VARIABLE})"
    )


class SetAsideError(Exception):
    """An item was given up: how its workflow ends that is not done. Its data is what `inbox list` shows."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__(data)
        self.data = data


class JSONSerializer(Serializer):
    """How DBOS stores inputs and results: as JSON, which any later version can read; its own default is pickle."""

    def serialize(self, data: Any) -> str:
        """Return JSON."""
        if isinstance(data, SetAsideError):
            data = {_SET_ASIDE: data.data}
        elif isinstance(data, BaseException):
            data = {_SET_ASIDE: {"status": "failed", "error": f"{type(data).__name__}: {data}"}}
        return json.dumps(data)

    def deserialize(self, serialized_data: str) -> Any:
        """Return what was serialized; every exception as a `SetAsideError`."""
        data = json.loads(serialized_data)
        if isinstance(data, dict) and _SET_ASIDE in data:
            return SetAsideError(data[_SET_ASIDE])
        if isinstance(data, dict) and data.keys() == {"args", "kwargs"}:
            data["args"] = tuple(data["args"])
        return data

    def name(self) -> str:
        """Return the name under which DBOS stores the format."""
        return "agentphone_json"


_SET_ASIDE = "agentphone.set_aside"


@frozen
class _Opened:
    """The connections of one process."""

    pid: int
    engine: sa.Engine
    client: DBOSClient
    table: sa.Table
    close: Callable[[], object]


class Database:
    """The database of an inbox. Creating one opens nothing; the first use creates the tables.

    All threads may share it. A forked child opens connections of its own.

    Args:
        url: The URL, as `resolve_database` returns it.
        inbox: The name of the inbox; several may share a database.
    """

    def __init__(self, url: str, inbox: str) -> None:
        self.url = url
        self._inbox = inbox
        self._opened: _Opened | None = None
        self._inherited: list[_Opened] = []
        self._lock = _OpenLock()

    @property
    def is_sqlite(self) -> bool:
        """True for a SQLite file."""
        return self.url.startswith("sqlite:")

    @property
    def application(self) -> str:
        """The inbox's name as DBOS's name of an application, which has 3 to 256 of few characters."""
        is_valid = re.fullmatch(r"[a-z0-9_-]{3,256}", self._inbox)
        return self._inbox if is_valid else f"agentphone-{hashlib.sha256(self._inbox.encode()).hexdigest()}"

    @property
    def path(self) -> Path | None:
        """The SQLite file, or None."""
        return Path(self.url.removeprefix("sqlite:///")) if self.is_sqlite else None

    def add(self, item: Item, *, trace: dict[str, str] | None = None, cursor: str | None = None) -> None:
        """Store an item durably, unless it is there already.

        Args:
            item: The item.
            trace: The headers of the caller's trace.
            cursor: How far polling has come with it, stored in the same transaction.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: The database cannot be used now.
        """
        stored = {
            "payload": item.payload,
            "deliveryId": item.delivery_id,
            "trace": trace,
            "storedAt": format_timestamp(datetime.now(UTC)),  # DBOS's own has whole seconds on Python 3.11 with SQLite
        }
        with self._transaction() as (opened, connection):
            # The order of arrival. DBOS has timestamps alone, on Python 3.11 with SQLite of whole seconds.
            number = self._next_number(opened, connection, item.partition)
            opened.client.enqueue_in_transaction(
                connection,
                {
                    "workflow_name": WORKFLOW,
                    "queue_name": self._inbox,
                    "workflow_id": self.workflow_id(item.id),
                    "queue_partition_key": item.partition,
                    "priority": number,
                },
                stored,
            )
            if cursor is not None:
                self._set(opened, connection, "cursor", cursor)

    def create_queue(self, worker_concurrency: int) -> None:
        """Create the queue from which workers take the items, or change it.

        Args:
            worker_concurrency: How many items a worker takes at once; of one partition it is one, over all workers.
        """
        self._open().client.register_queue(
            self._inbox,
            partition_concurrency=1,
            worker_concurrency=worker_concurrency,
            polling_interval_sec=POLL_SECONDS,
        )

    def get(self, key: str) -> str | None:
        """Return a value of this inbox: how far polling has come, and where it began."""
        with self._transaction() as (opened, connection):
            table = opened.table
            where = (table.c.inbox == self._inbox, table.c.key == key)
            return connection.execute(sa.select(table.c.value).where(*where)).scalar()

    def put(self, **values: str) -> None:
        """Store values of this inbox."""
        with self._transaction() as (opened, connection):
            for key, value in values.items():
                self._set(opened, connection, key, value)

    def workflows(self, *, states: tuple[str, ...] | None = None, limit: int | None) -> list[WorkflowStatus]:
        """Return the workflows of this inbox, newest first: of all states of DBOS or of some."""
        # Not by the queue: DBOS takes those out of it whose processes were killed too often.
        found = self._open().client.list_workflows(
            status=[*states] if states else None, limit=limit, sort_desc=True, name=WORKFLOW
        )
        return sorted(found, key=lambda workflow: (workflow.created_at or 0, workflow.priority or 0), reverse=True)

    def find(self, item_id: str) -> WorkflowStatus | None:
        """Return the workflow of an item."""
        found = self._open().client.list_workflows(workflow_ids=[self.workflow_id(item_id)])
        return found[0] if found else None

    def steps(self, item_id: str) -> list[Any]:
        """Return the steps that an item has done, in order."""
        return self._open().client.list_workflow_steps(self.workflow_id(item_id))

    def reply_ids(self, partition: str) -> set[str]:
        """Return the ids of the replies to the items of a partition that were done lately."""
        since = (datetime.now(UTC) - RECENT).isoformat()
        done = self._open().client.list_workflows(
            queue_name=self._inbox, name=WORKFLOW, status="SUCCESS", completed_after=since, load_input=False
        )
        replies = (each.output.get("replyId") for each in done if each.queue_partition_key == partition and each.output)
        return {reply_id for reply_id in replies if reply_id}

    def owners(self) -> dict[str, list[str]]:
        """Return the ids of the workflows that are being handled, by the names of their workers."""
        found: dict[str, list[str]] = {}
        running = self._open().client.list_workflows(
            queue_name=self._inbox, name=WORKFLOW, status="PENDING", load_input=False, load_output=False
        )
        for workflow in running:
            found.setdefault(workflow.executor_id or "", []).append(workflow.workflow_id)
        return found

    def requeue(self, workflow_ids: list[str]) -> None:
        """Put workflows back into the queue that no worker will continue. They keep their steps and order."""
        self._open().client.resume_workflows(workflow_ids, queue_name=self._inbox)

    def rewind(self, item_id: str, *, partition: str, to_step: int) -> None:
        """Put an item that has ended back into the queue, without its steps from one on."""
        self._open().client.rewind_workflow(
            self.workflow_id(item_id), start_step=to_step, queue_name=self._inbox, queue_partition_key=partition
        )

    def connect(self) -> sa.Connection:
        """Return a connection, to hold a lock with; the caller closes it."""
        return self._open().engine.connect()

    def workflow_id(self, item_id: str) -> str:
        """Return the id of an item's workflow; ids of DBOS are those of the whole database."""
        return f"{self._inbox}:{item_id}"

    def item_id(self, workflow_id: str) -> str:
        """Return the id of a workflow's item."""
        return workflow_id.removeprefix(f"{self._inbox}:")

    def close(self) -> None:
        """Close the connections, those in use when they are returned; a later call opens new ones."""
        with self._lock.lock:
            if self._opened is not None and self._opened.pid == os.getpid():
                self._opened.close()
                self._opened = None

    @contextmanager
    def _transaction(self) -> Generator[tuple[_Opened, sa.Connection]]:
        opened = self._open()
        if not self.is_sqlite:
            with opened.engine.begin() as connection:
                yield opened, connection
            return
        # SQLite's mutexes are in this process: a fork in the middle would leave one locked in the child. It has one
        # writer at a time anyway.
        with self._lock.lock, opened.engine.begin() as connection:
            yield opened, connection

    def _open(self) -> _Opened:
        opened = self._opened
        if opened is not None and opened.pid == os.getpid():
            return opened
        with self._lock.lock:
            opened = self._opened
            if opened is not None and opened.pid != os.getpid():
                # Kept, neither used nor closed: its connections belong to the parent process.
                self._inherited.append(opened)
                opened = None
            if opened is None:
                self._opened = opened = self._create()
        return opened

    def _create(self) -> _Opened:
        engine = create_engine(self.url)
        # At the latest when the interpreter exits: Python and psycopg warn of connections that are left open.
        close = weakref.finalize(self, _close, engine, os.getpid())
        try:
            with quiet_dbos():
                with configuring_all_connections():
                    DBOS.migrate(self.url)
                client = DBOSClient(
                    system_database_engine=engine,
                    serializer=JSONSerializer(),
                    application_name=self.application,
                    retry_connection_errors=False,  # the sender tries again; a thread that hangs helps nobody
                    lazy=True,
                )
            return _Opened(os.getpid(), engine, client, _create_table(engine), close)
        except BaseException:
            close()
            raise

    def _next_number(self, opened: _Opened, connection: sa.Connection, partition: str) -> int:
        """Return the number of an item. In its partition the numbers become visible in their order.

        That is what lets no two workers take two items of one partition: DBOS finds the first item of a partition, and
        takes it later. If one with a lower number appeared in between, another worker could take that one as well.
        SQLite has one writer at a time.
        """
        if not self.is_sqlite:
            key = int.from_bytes(hashlib.sha256(f"{self._inbox}\0{partition}".encode()).digest()[:8], signed=True)
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
            return int(connection.execute(sa.select(sa.func.nextval(f"{SCHEMA}.agentphone_inbox_order"))).scalar_one())
        table = opened.table
        number = sa.cast(table.c.value, sa.Integer) + 1
        insert = _insert(opened, inbox="", key="order", value="1").on_conflict_do_update(
            index_elements=["inbox", "key"], set_={"value": sa.cast(number, sa.Text)}
        )
        return int(connection.execute(insert.returning(table.c.value)).scalar_one())

    def _set(self, opened: _Opened, connection: sa.Connection, key: str, value: str) -> None:
        insert = _insert(opened, inbox=self._inbox, key=key, value=value)
        connection.execute(insert.on_conflict_do_update(index_elements=["inbox", "key"], set_={"value": value}))


class _OpenLock:
    """The lock of a database, held while SQLite works, which takes milliseconds, and while the process forks."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        hold_lock_at_fork(self)

    def before_fork(self) -> None:
        self.lock.acquire()

    def after_fork_in_parent(self) -> None:
        self.lock.release()

    def after_fork_in_child(self) -> None:
        self.lock = threading.RLock()


def _close(engine: sa.Engine, pid: int) -> None:
    if pid == os.getpid():
        close_engine(engine)


def _insert(opened: _Opened, **values: str) -> Any:
    if opened.engine.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(opened.table).values(**values)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(opened.table).values(**values)


def _create_table(engine: sa.Engine) -> sa.Table:
    is_sqlite = engine.dialect.name == "sqlite"
    table = sa.Table(
        "agentphone_inbox",
        sa.MetaData(schema=None if is_sqlite else SCHEMA),
        sa.Column("inbox", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    with engine.begin() as connection:
        if is_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # two processes may create it at once
        else:
            # PostgreSQL checks IF NOT EXISTS too early, and raises when two create a thing at once.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK_OF_TABLES)))
            create = f"CREATE SEQUENCE IF NOT EXISTS {SCHEMA}.agentphone_inbox_order MAXVALUE {MAX_ORDER} CYCLE"
            connection.exec_driver_sql(create)
        table.create(connection, checkfirst=True)
    return table


_LOCK_OF_TABLES = 0x41506C67


@contextmanager
def quiet_dbos() -> Generator[None]:
    """Keep from DBOS's log what the inbox reports itself, and its notes about starting and stopping.

    Without a handler DBOS adds one of its own, which writes to stderr. Its log of a workflow that raises has the texts
    of people in it. A level that the user has set is kept.
    """

    def is_of_interest(record: logging.LogRecord) -> bool:  # a new function each time: blocks may be nested
        raised = record.exc_info[1] if record.exc_info else None
        return not isinstance(raised, SetAsideError) and not record.getMessage().startswith("Asyncio task cancelled")

    log = logging.getLogger("dbos")
    level, handler = log.level, logging.NullHandler()
    log.addHandler(handler)
    log.addFilter(is_of_interest)
    if level == logging.NOTSET:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeFilter(is_of_interest)
        log.removeHandler(handler)
