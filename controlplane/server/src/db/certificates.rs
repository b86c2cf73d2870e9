//! Certificates: what was issued, what was used, what is over.

use farshore_api::Role;
use farshore_api::identity::{Certified, Serial, Standing};
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::identities::unknown_identity;
use super::record::{Record, name_of, own};
use super::{Actor, Db, Tx, events, raise_version};
use crate::clock;
use crate::domain::generation::{Known, Shown};
use crate::error::ControlError;

/// A certificate, as the catalogue keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Issued {
    /// Its serial number, which holds its generation.
    pub serial: Serial,
    /// BLAKE3 of its public key.
    pub key: blake3::Hash,
    /// When it ends.
    pub not_after_s: u64,
}

/// What no certificate reaches: the identity was revoked.
const NONE_REACHES: u64 = u64::MAX;

/// Selects what is known of the certificates of `identities`, for [`certified`].
pub(super) const CERTIFIED: &str = "identities.generation AS certificate_generation,
    identities.expires_at_s AS certificate_expires_at_s, identities.revoked_at_ms AS revoked_at_ms,
    identities.cloned AS cloned";

/// Reads what [`CERTIFIED`] selects.
pub(super) fn certified(record: &Record) -> Result<Certified, ControlError> {
    let expires_at_unix_s = record.number("certificate_expires_at_s")?;
    let cloned = Some(record.text("cloned")?).filter(|text| !text.is_empty());
    let standing = if record.optional_number("revoked_at_ms")?.is_some() {
        Standing::Revoked
    } else if cloned.is_some() {
        Standing::Cloned
    } else if expires_at_unix_s <= clock::now_s() {
        Standing::Expired
    } else {
        Standing::Valid
    };
    let generation = record.number("certificate_generation")?;
    Ok(Certified { standing, generation, expires_at_unix_s, cloned })
}

/// Selects the oldest generation of `identities` that is not over, for [`generation_min`]: those
/// before the last enrolment are, and those before the one that was in use before the newest. While two
/// holders of the identity are known, that one is over too: the copy's sessions end.
pub(super) const GENERATION_MIN: &str = "identities.revoked_at_ms AS revoked_at_ms,
    max(identities.generation_min, coalesce((SELECT max(generation) FROM certificates
        WHERE principal = identities.id AND used_at_ms IS NOT NULL), 0) - (identities.cloned = ''))
        AS generation_min";

/// As [`GENERATION_MIN`], by enrolments alone as long as one holder is known: it does not change with every
/// renewal, so that whoever is connected stays so.
pub(super) const ENROLLED_MIN: &str = "identities.revoked_at_ms AS revoked_at_ms,
    max(identities.generation_min, CASE WHEN identities.cloned = '' THEN 0 ELSE
        coalesce((SELECT max(generation) FROM certificates
            WHERE principal = identities.id AND used_at_ms IS NOT NULL), 0) END) AS generation_min";

/// Reads what [`GENERATION_MIN`] or [`ENROLLED_MIN`] selects.
pub(super) fn generation_min(record: &Record) -> Result<u64, ControlError> {
    match record.optional_number("revoked_at_ms")? {
        Some(_) => Ok(NONE_REACHES),
        None => record.number("generation_min"),
    }
}

/// Notes a certificate; `used` if it has been shown already, and from where.
async fn insert(
    tx: &mut Tx,
    id: Uuid,
    issued: &Issued,
    cause: &'static str,
    used: Option<&str>,
) -> Result<(), ControlError> {
    let now = own(clock::now_ms());
    sqlx::query(
        "INSERT INTO certificates (serial, principal, generation, key_hash, not_after_s, cause,
            issued_at_ms, used_at_ms, used_from) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(issued.serial.to_string())
    .bind(id.to_string())
    .bind(own(issued.serial.generation()))
    .bind(issued.key.to_hex().as_str())
    .bind(own(issued.not_after_s))
    .bind(cause)
    .bind(now)
    .bind(used.map(|_| now))
    .bind(used.unwrap_or_default())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Notes the first certificate of an enrolment: all before it are over.
pub(super) async fn enrolled(tx: &mut Tx, id: Uuid, issued: &Issued) -> Result<(), ControlError> {
    insert(tx, id, issued, "enrol", None).await?;
    end_older(tx, id, issued.serial.generation()).await?;
    Ok(())
}

/// Marks the certificates of an older generation as over; whether any were not.
async fn end_older(tx: &mut Tx, id: Uuid, generation: u64) -> Result<bool, ControlError> {
    let ended = sqlx::query(
        "UPDATE certificates SET revoked_at_ms = ?
         WHERE principal = ? AND generation < ? AND revoked_at_ms IS NULL",
    )
    .bind(own(clock::now_ms()))
    .bind(id.to_string())
    .bind(own(generation))
    .execute(&mut **tx)
    .await?;
    Ok(ended.rows_affected() > 0)
}

/// Raises the newest generation to the one just issued; false if another was issued meanwhile.
async fn raise(tx: &mut Tx, role: Role, id: Uuid, issued: &Issued) -> Result<bool, ControlError> {
    let raised = sqlx::query(
        "UPDATE identities SET generation = ?, expires_at_s = ?
         WHERE id = ? AND role = ? AND revoked_at_ms IS NULL AND generation < ?",
    )
    .bind(own(issued.serial.generation()))
    .bind(own(issued.not_after_s))
    .bind(id.to_string())
    .bind(name_of(&role))
    .bind(own(issued.serial.generation()))
    .execute(&mut **tx)
    .await?;
    Ok(raised.rows_affected() == 1)
}

impl Db {
    /// The generation for the next certificate of an identity; 1 if it is new.
    ///
    /// # Errors
    /// `Database`.
    pub async fn next_generation(&self, id: Uuid) -> Result<u64, ControlError> {
        let row = sqlx::query("SELECT generation FROM identities WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.map_or(Ok(0), |row| Record(row).number("generation"))? + 1)
    }

    /// Notes a renewed certificate. The older ones stay good until it is used.
    ///
    /// # Errors
    /// `Unauthenticated` if the identity is gone or revoked, `Stopping` if another certificate was
    /// issued at the same moment.
    pub async fn renew(&self, role: Role, id: Uuid, issued: &Issued) -> Result<(), ControlError> {
        let mut tx = self.begin().await?;
        if !raise(&mut tx, role, id, issued).await? {
            drop(tx);
            self.check_identity(role, id).await?;
            return Err(ControlError::Busy { what: "this identity's certificate" });
        }
        insert(&mut tx, id, issued, "renew", None).await?;
        let peer = Actor::Peer(role, id);
        let detail = format!("generation {}", issued.serial.generation());
        events::append(&mut tx, peer, "identity.renew", peer, &detail).await?;
        tx.commit().await?;
        Ok(())
    }

    /// What is known of an identity and of the certificate that it shows.
    ///
    /// # Errors
    /// `Unauthenticated` if there is no such identity in this role.
    pub async fn known(
        &self,
        role: Role,
        id: Uuid,
        serial: &Serial,
    ) -> Result<Known, ControlError> {
        let row: Option<SqliteRow> = sqlx::query(
            "SELECT identities.revoked_at_ms, identities.generation, identities.generation_min,
                identities.cloned, shown.serial, shown.used_at_ms, used.generation AS used,
                used.used_at_ms AS used_since_ms
             FROM identities
             LEFT JOIN certificates AS shown
                ON shown.serial = ? AND shown.principal = identities.id
             LEFT JOIN certificates AS used ON used.serial = (SELECT serial FROM certificates
                WHERE principal = identities.id AND used_at_ms IS NOT NULL
                ORDER BY generation DESC LIMIT 1)
             WHERE identities.id = ? AND identities.role = ?",
        )
        .bind(serial.to_string())
        .bind(id.to_string())
        .bind(name_of(&role))
        .fetch_optional(&self.readers)
        .await?;
        let record = Record(row.ok_or_else(unknown_identity)?);
        let is_used = record.optional_number("used_at_ms")?.is_some();
        let used = record.optional_number("used")?.zip(record.optional_number("used_since_ms")?);
        Ok(Known {
            is_revoked: record.optional_number("revoked_at_ms")?.is_some(),
            is_cloned: !record.text("cloned")?.is_empty(),
            newest: record.number("generation")?,
            min: record.number("generation_min")?,
            shown: record.optional_text("serial")?.map(|_| Shown { is_used }),
            used,
        })
    }

    /// Notes the first use of a certificate, from where: older ones are over from now on. If there were any
    /// and it `is_watched` ([`GENERATION_MIN`], [`ENROLLED_MIN`]), the assignments change; whether they did.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn first_use(
        &self,
        id: Uuid,
        serial: &Serial,
        from: &str,
        is_watched: bool,
    ) -> Result<bool, ControlError> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "UPDATE certificates SET used_at_ms = ?, used_from = ?
             WHERE serial = ? AND principal = ? AND used_at_ms IS NULL",
        )
        .bind(own(clock::now_ms()))
        .bind(from)
        .bind(serial.to_string())
        .bind(id.to_string())
        .execute(&mut *tx)
        .await?;
        let is_told = end_older(&mut tx, id, serial.generation()).await? && is_watched;
        if is_told {
            raise_version(&mut tx).await?;
        }
        tx.commit().await?;
        Ok(is_told)
    }

    /// Takes over a certificate that our CA signed and the catalogue does not know: it was set back
    /// to an older state. Done by whoever shows it first. Whether the assignments changed, as by
    /// [`Db::first_use`].
    ///
    /// # Errors
    /// `Unauthenticated` if the identity is gone or revoked.
    pub async fn adopt(
        &self,
        role: Role,
        id: Uuid,
        issued: &Issued,
        from: &str,
        is_watched: bool,
    ) -> Result<bool, ControlError> {
        let mut tx = self.begin().await?;
        if !raise(&mut tx, role, id, issued).await? {
            return Err(unknown_identity());
        }
        insert(&mut tx, id, issued, "shown", Some(from)).await?;
        let is_told = end_older(&mut tx, id, issued.serial.generation()).await? && is_watched;
        if is_told {
            raise_version(&mut tx).await?;
        }
        let peer = Actor::Peer(role, id);
        let detail = format!(
            "generation {} is newer than the catalogue, which was set back",
            issued.serial.generation()
        );
        events::append(&mut tx, Actor::Control, "identity.adopt", peer, &detail).await?;
        tx.commit().await?;
        Ok(is_told)
    }

    /// Notes that a certificate was shown that should not have been, `what` happened. Of a new clone the
    /// identity shows it until it is enrolled again, and the assignments change.
    ///
    /// # Errors
    /// `Database`, `NoSpace`.
    pub async fn note_holder(
        &self,
        role: Role,
        id: Uuid,
        what: &'static str,
        serial: &Serial,
        from: &str,
        is_new_clone: bool,
    ) -> Result<(), ControlError> {
        let mut tx = self.begin().await?;
        let newest = sqlx::query(
            "SELECT generation, used_from FROM certificates
             WHERE principal = ? AND used_at_ms IS NOT NULL ORDER BY generation DESC LIMIT 1",
        )
        .bind(id.to_string())
        .fetch_optional(&mut *tx)
        .await?
        .map(Record);
        let newest = match newest {
            None => "none is in use".to_owned(),
            Some(record) => {
                let (generation, from) = (record.number("generation")?, record.text("used_from")?);
                format!("generation {generation} is in use from {from}")
            }
        };
        let detail = format!("{newest}; generation {} was shown from {from}", serial.generation());
        if is_new_clone {
            sqlx::query("UPDATE identities SET cloned = ? WHERE id = ?")
                .bind(&detail)
                .bind(id.to_string())
                .execute(&mut *tx)
                .await?;
            raise_version(&mut tx).await?;
        }
        events::append(&mut tx, Actor::Control, what, Actor::Peer(role, id), &detail).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Ends an identity: none of its certificates is taken any more, nor are tokens for it. Returns
    /// the machines that it carried. Done again it changes nothing.
    ///
    /// # Errors
    /// `NotFound` if there is no such identity in this role.
    pub async fn revoke(
        &self,
        actor: Actor,
        role: Role,
        id: Uuid,
    ) -> Result<Vec<String>, ControlError> {
        let mut tx = self.begin().await?;
        let now = own(clock::now_ms());
        let known = sqlx::query("SELECT revoked_at_ms FROM identities WHERE id = ? AND role = ?")
            .bind(id.to_string())
            .bind(name_of(&role))
            .fetch_optional(&mut *tx)
            .await?;
        let missing = || ControlError::NotFound { what: role.as_str(), name: id.to_string() };
        let is_new = Record(known.ok_or_else(missing)?).optional_number("revoked_at_ms")?.is_none();
        let column = match role {
            Role::Agent => "machines.agent",
            Role::Node => "volumes.node",
        };
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT DISTINCT machines.name AS name FROM machines
             JOIN volumes ON volumes.machine = machines.id WHERE {column} = ?
             ORDER BY machines.name"
        )))
        .bind(id.to_string())
        .fetch_all(&mut *tx)
        .await?;
        let machines: Vec<String> =
            rows.into_iter().map(|row| Record(row).text("name")).collect::<Result<_, _>>()?;
        if !is_new {
            return Ok(machines);
        }
        for sql in [
            "UPDATE identities SET revoked_at_ms = ?, cloned = '' WHERE id = ?",
            "UPDATE certificates SET revoked_at_ms = ? WHERE principal = ? AND revoked_at_ms IS NULL",
        ] {
            sqlx::query(sql).bind(now).bind(id.to_string()).execute(&mut *tx).await?;
        }
        sqlx::query("DELETE FROM enrolment_tokens WHERE identity = ? AND used_at_ms IS NULL")
            .bind(id.to_string())
            .execute(&mut *tx)
            .await?;
        raise_version(&mut tx).await?;
        let detail = format!("carried {}", listed(&machines));
        events::append(&mut tx, actor, "identity.revoke", Actor::Peer(role, id), &detail).await?;
        tx.commit().await?;
        Ok(machines)
    }
}

#[cfg(test)]
impl Db {
    /// As if all certificates had been used long ago.
    pub(crate) async fn let_certificates_age(&self) {
        let aged = sqlx::query("UPDATE certificates SET used_at_ms = 1 WHERE used_at_ms > 1");
        aged.execute(&self.writer).await.unwrap();
    }
}

fn listed(names: &[String]) -> String {
    const SHOWN: usize = 10;
    match names.len() {
        0 => "no machine".into(),
        more if more > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), more - SHOWN),
        _ => names.join(", "),
    }
}
