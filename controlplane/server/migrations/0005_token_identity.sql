-- The identity that a token enrols again: an agent or node whose certificate ran out keeps its id and
-- with it its machines. Null for a token that makes a new identity.
ALTER TABLE enrolment_tokens ADD COLUMN identity TEXT REFERENCES identities (id);
