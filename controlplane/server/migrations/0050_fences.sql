-- Where fences cut the streams of volumes: under an older epoch nothing counts from this seq on, whoever
-- tells of it, and however late.
CREATE TABLE fences (
    volume    TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
    epoch     INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    PRIMARY KEY (volume, epoch)
) STRICT, WITHOUT ROWID;
-- The log in which a fenced volume gets no more, by the word of the node that had it; NULL while it has
-- not said so.
ALTER TABLE volumes ADD COLUMN let_go_log TEXT;
