-- What comparing the disk with what was sent of it has brought, as the agent said last, in JSON; null if it
-- is not compared. Kept so that each difference is one event.
ALTER TABLE volumes ADD COLUMN samples TEXT;
