-- The size that the volume has under its epoch, since its disk has grown; null before.
ALTER TABLE volumes ADD COLUMN granted_bytes INTEGER;
