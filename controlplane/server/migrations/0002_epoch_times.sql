-- When the epoch was raised last, so that a node that asks for a greater one again and again is
-- given few. A time in the past for volumes from before this column.
ALTER TABLE volumes ADD COLUMN epoch_at_ms INTEGER NOT NULL DEFAULT 0;
