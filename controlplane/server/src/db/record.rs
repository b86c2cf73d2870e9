//! Values between rows and types.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use crate::error::ControlError;

/// A row whose columns are read by name into our types.
pub(super) struct Record(pub(super) SqliteRow);

impl Record {
    fn unreadable(column: &'static str) -> ControlError {
        ControlError::Unreadable { column }
    }

    pub(super) fn number(&self, column: &'static str) -> Result<u64, ControlError> {
        let value: i64 = self.0.try_get(column)?;
        u64::try_from(value).map_err(|_| Self::unreadable(column))
    }

    pub(super) fn signed(&self, column: &'static str) -> Result<i64, ControlError> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn optional_number(
        &self,
        column: &'static str,
    ) -> Result<Option<u64>, ControlError> {
        let value: Option<i64> = self.0.try_get(column)?;
        value.map(|v| u64::try_from(v).map_err(|_| Self::unreadable(column))).transpose()
    }

    pub(super) fn narrow<N: TryFrom<u64>>(&self, column: &'static str) -> Result<N, ControlError> {
        N::try_from(self.number(column)?).map_err(|_| Self::unreadable(column))
    }

    pub(super) fn flag(&self, column: &'static str) -> Result<bool, ControlError> {
        Ok(self.number(column)? != 0)
    }

    pub(super) fn real(&self, column: &'static str) -> Result<f64, ControlError> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn optional_real(&self, column: &'static str) -> Result<Option<f64>, ControlError> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn text(&self, column: &'static str) -> Result<String, ControlError> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn optional_text(
        &self,
        column: &'static str,
    ) -> Result<Option<String>, ControlError> {
        Ok(self.0.try_get(column)?)
    }

    pub(super) fn id(&self, column: &'static str) -> Result<Uuid, ControlError> {
        let text: String = self.0.try_get(column)?;
        Uuid::parse_str(&text).map_err(|_| Self::unreadable(column))
    }

    pub(super) fn optional_id(&self, column: &'static str) -> Result<Option<Uuid>, ControlError> {
        let text: Option<String> = self.0.try_get(column)?;
        text.map(|t| Uuid::parse_str(&t).map_err(|_| Self::unreadable(column))).transpose()
    }

    /// A value of an enum, stored under its name in JSON.
    pub(super) fn name<T: DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> Result<T, ControlError> {
        let text: String = self.0.try_get(column)?;
        serde_json::from_value(text.into()).map_err(|_| Self::unreadable(column))
    }

    pub(super) fn optional_json<T: DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, ControlError> {
        let text = self.optional_text(column)?;
        text.map(|text| serde_json::from_str(&text).map_err(|_| Self::unreadable(column)))
            .transpose()
    }

    pub(super) fn json<T: DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> Result<T, ControlError> {
        let text: String = self.0.try_get(column)?;
        serde_json::from_str(&text).map_err(|_| Self::unreadable(column))
    }
}

/// A number for a column; the database holds 63 bits.
pub(super) fn number(field: &'static str, value: u64) -> Result<i64, ControlError> {
    i64::try_from(value).map_err(|_| ControlError::Invalid {
        field,
        why: format!("is {value}; it must be below 2^63"),
    })
}

/// A time or another number of our own making, which fits.
pub(super) fn own(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The name that a value of an enum has in JSON.
pub(super) fn name_of<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => unreachable!("only enums without fields are stored by name"),
    }
}
