-- Where a volume was before a fence took it from its node: there it goes back.
ALTER TABLE volumes ADD COLUMN last_node TEXT REFERENCES nodes (id);
