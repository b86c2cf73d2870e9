//! Enrolment tokens, identities, and the hash of the operator's token.

use farshore_api::Role;
use uuid::Uuid;

use super::certificates::{self, Issued};
use super::record::{Record, name_of, own};
use super::{Actor, Db, Tx, events, raise_version};
use crate::clock;
use crate::error::ControlError;

/// What came of an enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enrolled {
    /// An identity that was not known.
    New,
    /// One that was: others must hear of it.
    Again,
    /// The same key did so with this token before, and was given this answer.
    Before(String),
}

impl Db {
    /// Stores a new enrolment token by the hash of its secret; for `identity` again, or a new one. It
    /// is the way back for one that was revoked, too.
    ///
    /// # Errors
    /// `NotFound` if that identity is not known in this role; `Database`, `NoSpace`.
    pub async fn create_token(
        &self,
        actor: Actor,
        role: Role,
        hash: &blake3::Hash,
        expires_at_s: u64,
        identity: Option<Uuid>,
    ) -> Result<(), ControlError> {
        if let Some(id) = identity {
            let known = sqlx::query("SELECT 1 FROM identities WHERE id = ? AND role = ?")
                .bind(id.to_string())
                .bind(name_of(&role))
                .fetch_optional(&self.readers)
                .await?;
            if known.is_none() {
                return Err(ControlError::NotFound { what: role.as_str(), name: id.to_string() });
            }
        }
        let identity = identity.map(|id| id.to_string());
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO enrolment_tokens (hash, role, expires_at_s, identity) VALUES (?, ?, ?, ?)",
        )
        .bind(hash.to_hex().as_str())
        .bind(name_of(&role))
        .bind(own(expires_at_s))
        .bind(&identity)
        .execute(&mut *tx)
        .await?;
        let detail = identity.unwrap_or_default();
        events::append(&mut tx, actor, "token.create", role, &detail).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Takes back a token that was not used.
    ///
    /// # Errors
    /// `NotFound` if there is no such token, or it was used; `Database`, `NoSpace`.
    pub async fn delete_token(
        &self,
        actor: Actor,
        hash: &blake3::Hash,
    ) -> Result<(), ControlError> {
        let mut tx = self.begin().await?;
        let gone = sqlx::query(
            "DELETE FROM enrolment_tokens WHERE hash = ? AND used_at_ms IS NULL RETURNING role",
        )
        .bind(hash.to_hex().as_str())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = gone else {
            let name = hash.to_hex().to_string();
            return Err(ControlError::NotFound { what: "enrolment token", name });
        };
        let role = Record(row).text("role")?;
        events::append(&mut tx, actor, "token.delete", &role, "").await?;
        tx.commit().await?;
        Ok(())
    }

    /// The identity that a token enrols again; `None` if it makes a new one or is not known.
    ///
    /// # Errors
    /// `Database`.
    pub async fn token_identity(&self, hash: &blake3::Hash) -> Result<Option<Uuid>, ControlError> {
        let row = sqlx::query("SELECT identity FROM enrolment_tokens WHERE hash = ?")
            .bind(hash.to_hex().as_str())
            .fetch_optional(&self.readers)
            .await?;
        row.map_or(Ok(None), |row| Record(row).optional_id("identity"))
    }

    /// Uses a token up and creates the identity that it stands for, or does neither.
    ///
    /// The hash is of a 256-bit random secret, so looking it up tells a guesser nothing by its
    /// timing. Of two callers with one token exactly one succeeds: the row changes from unused to
    /// used once. All certificates that the identity had before are over.
    ///
    /// An answer that was lost is given again to the same key, while the token lives and the certificate is
    /// the identity's newest: a token is for one holder, not for one call.
    ///
    /// # Errors
    /// `TokenRefused` if the token is unknown, used, expired or for another role.
    pub async fn enrol(
        &self,
        role: Role,
        hash: &blake3::Hash,
        id: Uuid,
        issued: &Issued,
        answer: &str,
    ) -> Result<Enrolled, ControlError> {
        let now_ms = clock::now_ms();
        let mut tx = self.begin().await?;
        let used = sqlx::query(
            "UPDATE enrolment_tokens SET used_at_ms = ?1, used_by = ?5, used_key = ?6,
                used_generation = ?7, answer = ?8
             WHERE hash = ?2 AND role = ?3 AND used_at_ms IS NULL AND expires_at_s > ?4
                AND (identity IS NULL OR identity = ?5)",
        )
        .bind(own(now_ms))
        .bind(hash.to_hex().as_str())
        .bind(name_of(&role))
        .bind(own(now_ms / 1000))
        .bind(id.to_string())
        .bind(issued.key.to_hex().as_str())
        .bind(own(issued.serial.generation()))
        .bind(answer)
        .execute(&mut *tx)
        .await?;
        if used.rows_affected() != 1 {
            return answered_before(&mut tx, role, hash, issued, now_ms).await;
        }
        // Only a token for this very identity comes here with an id that is taken.
        let is_again = sqlx::query("SELECT 1 FROM identities WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&mut *tx)
            .await?
            .is_some();
        let generation = own(issued.serial.generation());
        let enrolled = sqlx::query(
            "INSERT INTO identities (id, role, enrolled_at_ms, expires_at_s, generation,
                generation_min) VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT (id) DO UPDATE SET enrolled_at_ms = excluded.enrolled_at_ms,
                expires_at_s = excluded.expires_at_s, generation = excluded.generation,
                generation_min = excluded.generation_min, revoked_at_ms = NULL, cloned = ''
             WHERE identities.role = excluded.role
                AND identities.generation < excluded.generation",
        )
        .bind(id.to_string())
        .bind(name_of(&role))
        .bind(own(now_ms))
        .bind(own(issued.not_after_s))
        .bind(generation)
        .bind(generation)
        .execute(&mut *tx)
        .await?;
        if enrolled.rows_affected() != 1 {
            return Err(ControlError::TokenRefused);
        }
        certificates::enrolled(&mut tx, id, issued).await?;
        // Nodes and agents are told at once which certificates are over. Of somebody new they know
        // nothing yet, and a thousand who enrol must not wake everybody a thousand times.
        if is_again {
            raise_version(&mut tx).await?;
        }
        let detail = format!("generation {}", issued.serial.generation());
        let peer = Actor::Peer(role, id);
        events::append(&mut tx, Actor::Enrolment, "identity.enrol", peer, &detail).await?;
        tx.commit().await?;
        Ok(if is_again { Enrolled::Again } else { Enrolled::New })
    }

    /// Whether an identity is (still) one of ours.
    ///
    /// # Errors
    /// `Unauthenticated` if it is not.
    pub async fn check_identity(&self, role: Role, id: Uuid) -> Result<(), ControlError> {
        sqlx::query("SELECT 1 FROM identities WHERE id = ? AND role = ? AND revoked_at_ms IS NULL")
            .bind(id.to_string())
            .bind(name_of(&role))
            .fetch_optional(&self.readers)
            .await?
            .map(|_| ())
            .ok_or_else(unknown_identity)
    }

    /// Stores the hash of the operator's token.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn set_operator_token(&self, hash: &blake3::Hash) -> Result<(), ControlError> {
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ('operator_token_hash', ?)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(hash.to_hex().as_str())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// The hash of the operator's token.
    ///
    /// # Errors
    /// `Unreadable` if there is none.
    pub async fn operator_token(&self) -> Result<blake3::Hash, ControlError> {
        let row = sqlx::query("SELECT value FROM settings WHERE name = 'operator_token_hash'")
            .fetch_one(&self.readers)
            .await?;
        let text = Record(row).text("value")?;
        blake3::Hash::from_hex(text).map_err(|_| ControlError::Unreadable { column: "value" })
    }
}

pub(super) fn unknown_identity() -> ControlError {
    ControlError::Unauthenticated {
        why: "the certificate's identity is not known here or was revoked; enrol again",
    }
}

/// The answer that the same key was given for a token that is used up.
async fn answered_before(
    tx: &mut Tx,
    role: Role,
    hash: &blake3::Hash,
    issued: &Issued,
    now_ms: u64,
) -> Result<Enrolled, ControlError> {
    let row = sqlx::query(
        "SELECT answer FROM enrolment_tokens
         JOIN identities ON identities.id = enrolment_tokens.used_by
            AND identities.revoked_at_ms IS NULL
            AND identities.generation_min <= enrolment_tokens.used_generation
         WHERE hash = ? AND enrolment_tokens.role = ? AND used_key = ? AND enrolment_tokens.expires_at_s > ?
            AND answer IS NOT NULL",
    )
    .bind(hash.to_hex().as_str())
    .bind(name_of(&role))
    .bind(issued.key.to_hex().as_str())
    .bind(own(now_ms / 1000))
    .fetch_optional(&mut **tx)
    .await?;
    let row = row.ok_or(ControlError::TokenRefused)?;
    Ok(Enrolled::Before(Record(row).text("answer")?))
}
