-- What the disk of a volume is, as its agent said last: so that one disk is not protected twice, under
-- two names or by two agents. A partition is its disk (`disk_base`) and where it begins (`disk_part`).
ALTER TABLE volumes ADD COLUMN disk_base TEXT NOT NULL DEFAULT '';
ALTER TABLE volumes ADD COLUMN disk_part TEXT NOT NULL DEFAULT '';
ALTER TABLE volumes ADD COLUMN disk_text TEXT NOT NULL DEFAULT '';
CREATE INDEX volumes_by_disk ON volumes (disk_base) WHERE disk_base <> '';

-- Whether the agent was heard about the volume since the control plane started.
ALTER TABLE volumes ADD COLUMN is_heard INTEGER NOT NULL DEFAULT 0;
