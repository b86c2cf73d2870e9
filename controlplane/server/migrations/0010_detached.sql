-- Volumes that an agent is to end: their machines were unprotected. Kept until the agent says that it
-- serves them no more; their machines are forgotten at once.
CREATE TABLE detached (
    volume TEXT PRIMARY KEY NOT NULL,
    agent  TEXT NOT NULL,
    at_ms  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX detached_by_agent ON detached (agent);
