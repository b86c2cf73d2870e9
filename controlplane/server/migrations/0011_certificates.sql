-- Every certificate that was issued. A generation is a certificate's place in the row of its
-- principal's certificates; it stands in the serial number too. `used_at_ms` is null until a call
-- showed it: an answer that was lost leaves one that is never used.
CREATE TABLE certificates (
    serial        TEXT PRIMARY KEY NOT NULL,
    principal     TEXT NOT NULL REFERENCES identities (id),
    generation    INTEGER NOT NULL,
    key_hash      TEXT NOT NULL,          -- BLAKE3 of the public key (SubjectPublicKeyInfo)
    not_after_s   INTEGER NOT NULL,
    cause         TEXT NOT NULL,          -- enrol, renew, or shown: known from itself only
    issued_at_ms  INTEGER NOT NULL,
    used_at_ms    INTEGER,
    used_from     TEXT NOT NULL DEFAULT '',
    revoked_at_ms INTEGER
) STRICT;
CREATE INDEX certificates_by_principal ON certificates (principal, generation);

-- `generation` is the newest that was issued; certificates below `generation_min` are over.
-- `cloned` says which two holders of one key were seen; empty when none were.
ALTER TABLE identities ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE identities ADD COLUMN generation_min INTEGER NOT NULL DEFAULT 0;
ALTER TABLE identities ADD COLUMN cloned TEXT NOT NULL DEFAULT '';
