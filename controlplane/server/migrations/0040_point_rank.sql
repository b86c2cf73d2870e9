-- Points have an order of their own: the seq of the machine's first volume, not a clock. Those that
-- are not committed yet stand behind all that are.
ALTER TABLE points ADD COLUMN rank INTEGER NOT NULL DEFAULT 9223372036854775807;
-- When a point was asked for or heard of, by the control plane's clock: its age is counted from then.
-- And when it was set, by that clock as far as it can be told; null while it is not committed.
ALTER TABLE points ADD COLUMN heard_ms INTEGER;
ALTER TABLE points ADD COLUMN at_ms INTEGER;
UPDATE points SET heard_ms = time_ms;
UPDATE points SET at_ms = time_ms, rank = coalesce(
    (SELECT seq FROM point_volumes WHERE point = points.id ORDER BY volume LIMIT 1), rank)
    WHERE state = 'committed';
DROP INDEX points_by_machine;
CREATE INDEX points_by_rank ON points (machine, rank, id);
CREATE INDEX points_by_hearing ON points (heard_ms);
-- How far an agent's clock was ahead of the control plane's at its last report.
ALTER TABLE agents ADD COLUMN clock_off_ms INTEGER NOT NULL DEFAULT 0;
