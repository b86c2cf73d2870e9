-- Blocks of the disk that the agent could not read when it set the mark: the point does not hold them.
ALTER TABLE point_volumes ADD COLUMN unknown_blocks INTEGER NOT NULL DEFAULT 0;

-- No agent can quiet applications: these would wait for ever.
DELETE FROM points WHERE kind = 'app' AND state = 'requested' AND asked = 1;
