-- What operators did and who was let in. Entries are only ever added, and each holds the hash of the
-- one before it. Apart from the events, which agents and nodes cause too and which are dropped.
CREATE TABLE audit (
    id        INTEGER PRIMARY KEY NOT NULL,
    at_ms     INTEGER NOT NULL,
    actor     TEXT NOT NULL,
    action    TEXT NOT NULL,
    object    TEXT NOT NULL,
    detail    TEXT NOT NULL,
    prev_hash TEXT NOT NULL,
    hash      TEXT NOT NULL
) STRICT;
CREATE TRIGGER audit_stays_as_it_is BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
CREATE TRIGGER audit_stays BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
CREATE TRIGGER audit_goes_on BEFORE INSERT ON audit
WHEN NEW.id <> coalesce((SELECT max(id) FROM audit), 0) + 1
BEGIN SELECT RAISE(ABORT, 'the audit log goes on from its end'); END;

CREATE INDEX events_by_actor ON events (actor, id);

-- The enrolment under which a node's address was taken: it moves to another with another enrolment.
ALTER TABLE nodes ADD COLUMN enrolled_generation INTEGER NOT NULL DEFAULT 0;
