-- Port on the agent's loopback where the machine's disk is served over NBD; null for a Unix socket.
ALTER TABLE machines ADD COLUMN nbd_port INTEGER;
