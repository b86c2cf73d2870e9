-- How its node tells that two living agents claim the volume; empty if not. Kept so that each begin and
-- end is one event.
ALTER TABLE volumes ADD COLUMN contested TEXT NOT NULL DEFAULT '';
