-- The catalogue: who is who, what is protected, and where everything stands.
--
-- Kept here because nothing else knows it: identities, policies, assignments with their epochs,
-- failovers and the audit log. Recovery points are a copy of what the vault holds, so that they can
-- be listed; they can be rebuilt from it. What agents and nodes report (state, progress, sequence
-- numbers, counters) is the last word heard, always shown together with its age.
--
-- Ids are UUIDs in text form. Times are Unix times in the unit that the column's name ends in.
-- Sequence numbers, epochs and sizes fit 63 bits.

-- Single values: `operator_token_hash`.
CREATE TABLE settings (
    name  TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) STRICT;

-- Number of the newest assignments, raised in the transaction that changes them. It never goes
-- back, so a long poll that outlives a restart compares correctly.
CREATE TABLE assignments (
    only    INTEGER PRIMARY KEY NOT NULL CHECK (only = 1),
    version INTEGER NOT NULL
) STRICT;
INSERT INTO assignments (only, version) VALUES (1, 1);

-- Enrolment tokens by the hash of their secret; the secret itself is never stored. Used ones stay
-- for a day, so that a second use can be told from an unknown token in the audit log.
CREATE TABLE enrolment_tokens (
    hash         TEXT PRIMARY KEY NOT NULL,
    role         TEXT NOT NULL,
    expires_at_s INTEGER NOT NULL,
    used_at_ms   INTEGER
) STRICT;

-- Whoever holds a certificate of ours. A row that is gone or revoked ends the identity even while
-- its certificate lasts.
CREATE TABLE identities (
    id             TEXT PRIMARY KEY NOT NULL,
    role           TEXT NOT NULL,
    enrolled_at_ms INTEGER NOT NULL,
    expires_at_s   INTEGER NOT NULL,
    revoked_at_ms  INTEGER
) STRICT;

CREATE TABLE agents (
    id               TEXT PRIMARY KEY NOT NULL REFERENCES identities (id),
    hostname         TEXT NOT NULL,
    version          TEXT NOT NULL,
    local            INTEGER NOT NULL,
    registered_at_ms INTEGER NOT NULL,
    last_seen_ms     INTEGER NOT NULL
) STRICT;

CREATE TABLE nodes (
    id               TEXT PRIMARY KEY NOT NULL REFERENCES identities (id),
    address          TEXT NOT NULL,
    shards           INTEGER NOT NULL,
    version          TEXT NOT NULL,
    registered_at_ms INTEGER NOT NULL,
    last_seen_ms     INTEGER NOT NULL,
    uptime_seconds   REAL NOT NULL DEFAULT 0,
    cpu_seconds      REAL NOT NULL DEFAULT 0,
    counters         TEXT NOT NULL DEFAULT '{}'
) STRICT;

CREATE TABLE policies (
    name             TEXT PRIMARY KEY NOT NULL,
    mark_interval_ms INTEGER NOT NULL,
    retention_hours  INTEGER NOT NULL,
    -- The policy for the way back; NULL for a failback policy.
    failback_policy  TEXT REFERENCES policies (name) DEFERRABLE INITIALLY DEFERRED
) STRICT;
INSERT INTO policies (name, mark_interval_ms, retention_hours, failback_policy) VALUES
    ('default-failback', 5000, 24, NULL),
    ('default', 5000, 24, 'default-failback');

CREATE TABLE machines (
    id               TEXT PRIMARY KEY NOT NULL,
    name             TEXT NOT NULL UNIQUE,
    policy           TEXT NOT NULL REFERENCES policies (name),
    mark_interval_ms INTEGER,            -- overrides the policy's
    capture          TEXT NOT NULL,
    agent            TEXT NOT NULL REFERENCES agents (id),
    failed_over      INTEGER NOT NULL DEFAULT 0,
    created_at_ms    INTEGER NOT NULL
) STRICT;

CREATE TABLE volumes (
    id            TEXT PRIMARY KEY NOT NULL,
    machine       TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    disk          TEXT NOT NULL,
    -- Intent. `epoch` only grows; it is raised before a new writer is told, and by a fence.
    epoch         INTEGER NOT NULL DEFAULT 0,
    node          TEXT REFERENCES nodes (id),
    writer_epoch  INTEGER,               -- last epoch given to a node
    parent_epoch  INTEGER,               -- the one given before that
    -- Observed. NULL `reported_at_ms`: the agent has never been heard about this volume.
    reported_at_ms INTEGER,
    reported_epoch INTEGER NOT NULL DEFAULT 0,
    state         TEXT NOT NULL DEFAULT 'pending',
    detail        TEXT NOT NULL DEFAULT '',
    error         TEXT,
    progress      REAL NOT NULL DEFAULT 0,
    size_bytes    INTEGER NOT NULL DEFAULT 0,
    sent_seq      INTEGER NOT NULL DEFAULT 0,
    journaled_seq INTEGER NOT NULL DEFAULT 0,
    committed_seq INTEGER NOT NULL DEFAULT 0,
    rpo_seconds   REAL,
    nbd_uri       TEXT
) STRICT;
CREATE INDEX volumes_by_machine ON volumes (machine);
CREATE INDEX volumes_by_node ON volumes (node);

-- Counters of a volume per epoch and run of its node: a node that restarts counts from zero, so the
-- totals are the sum over the rows.
CREATE TABLE volume_stats (
    volume          TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
    epoch           INTEGER NOT NULL,
    run             INTEGER NOT NULL,
    bytes_in        INTEGER NOT NULL,
    zero_bytes      INTEGER NOT NULL,
    duplicate_bytes INTEGER NOT NULL,
    unique_bytes    INTEGER NOT NULL,
    stored_bytes    INTEGER NOT NULL,
    PRIMARY KEY (volume, epoch, run)
) STRICT, WITHOUT ROWID;

-- Recovery points. `asked` is 1 for those that an operator asked for.
CREATE TABLE points (
    id      TEXT PRIMARY KEY NOT NULL,
    machine TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    kind    TEXT NOT NULL,
    time_ms INTEGER NOT NULL,
    state   TEXT NOT NULL,
    asked   INTEGER NOT NULL
) STRICT;
CREATE INDEX points_by_machine ON points (machine, state, time_ms, id);

CREATE TABLE point_volumes (
    point  TEXT NOT NULL REFERENCES points (id) ON DELETE CASCADE,
    volume TEXT NOT NULL,
    seq    INTEGER NOT NULL,
    PRIMARY KEY (point, volume)
) STRICT, WITHOUT ROWID;

-- Failovers outlive their machine's row: they are history. A process is known by its pid together
-- with the time it started (clock ticks after boot), because pids come back.
CREATE TABLE failovers (
    id                TEXT PRIMARY KEY NOT NULL,
    machine           TEXT NOT NULL,
    machine_name      TEXT NOT NULL,
    volume            TEXT NOT NULL,
    kind              TEXT NOT NULL,
    spec              TEXT NOT NULL,     -- the request as JSON
    point             TEXT,
    state             TEXT NOT NULL,
    committed         INTEGER NOT NULL DEFAULT 0,
    detail            TEXT NOT NULL DEFAULT '',
    error             TEXT,
    nbd_uri           TEXT,
    console_path      TEXT,
    export_pid        INTEGER,
    export_started    INTEGER,
    machine_pid       INTEGER,
    machine_started   INTEGER,
    created_at_ms     INTEGER NOT NULL
) STRICT;
CREATE INDEX failovers_by_state ON failovers (state);

CREATE TABLE failover_steps (
    failover TEXT NOT NULL REFERENCES failovers (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    state    TEXT NOT NULL,
    at_ms    INTEGER NOT NULL,
    PRIMARY KEY (failover, position)
) STRICT, WITHOUT ROWID;

-- The audit log: one row for every call that changed something, written in its transaction.
-- Periodic reports are not calls in this sense.
CREATE TABLE events (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms  INTEGER NOT NULL,
    actor  TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
