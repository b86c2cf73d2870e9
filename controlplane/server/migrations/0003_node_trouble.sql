-- What keeps a node from its work, in its own words; empty when nothing does. It makes the machines
-- on that node degraded: their agents only see acknowledgements that do not come.
ALTER TABLE nodes ADD COLUMN trouble TEXT NOT NULL DEFAULT '';
