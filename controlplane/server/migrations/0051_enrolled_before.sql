-- What a token was used for: the key, the identity, the generation of its certificate, and the answer. Whoever
-- lost that answer and has the key is told it again, for as long as the token lives.
ALTER TABLE enrolment_tokens ADD COLUMN used_key TEXT;
ALTER TABLE enrolment_tokens ADD COLUMN used_by TEXT;
ALTER TABLE enrolment_tokens ADD COLUMN used_generation INTEGER;
ALTER TABLE enrolment_tokens ADD COLUMN answer TEXT;
