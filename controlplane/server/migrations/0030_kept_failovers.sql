-- A process is known by the boot of its host too: pids and ticks come back after a reboot. NULL for
-- one that was noted before this column; it is then looked for by its command line.
ALTER TABLE failovers ADD COLUMN export_boot TEXT;
ALTER TABLE failovers ADD COLUMN machine_boot TEXT;
-- Whether the machine has shut itself down, so that it is not started again.
ALTER TABLE failovers ADD COLUMN machine_down INTEGER NOT NULL DEFAULT 0;
-- How often an operator said to try again; a driver that waits wakes up when it grows.
ALTER TABLE failovers ADD COLUMN retries INTEGER NOT NULL DEFAULT 0;
