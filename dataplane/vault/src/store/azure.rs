//! Azure Blob Storage: account, endpoint and credential as the Azure tools find them.
//!
//! A connection string (`AZURE_STORAGE_CONNECTION_STRING`, or a file with one that
//! `AZURE_STORAGE_CONNECTION_STRING_FILE` names) comes before the single variables. Without a key or a
//! signature it is the identity of the workload or of the machine, or with `AZURE_USE_AZURE_CLI=true`
//! that of `az login`.

use super::settings;
use super::{Service, StoreError, open};
use crate::limits::STORE_CONNECT_TIME;
use object_store::ClientConfigKey;
use object_store::azure::{AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder};
use std::path::Path;

/// Opens a container.
pub(super) fn open(url: &str, container: &str) -> Result<MicrosoftAzure, StoreError> {
    let mut builder = of_environment().with_container_name(container).with_retry(open::retries());
    if let Some(text) = connection_string(url)? {
        let settings = ConnectionString::parse(&text)
            .map_err(|why| StoreError::Settings { url: url.to_owned(), why })?;
        builder = settings.apply(builder);
    }
    let get = |key| builder.get_config_value(&key);
    let is_emulator = get(AzureConfigKey::UseEmulator).is_some_and(|is_on| is_on == "true");
    if get(AzureConfigKey::AccountName).is_none() && !is_emulator {
        return Err(StoreError::NoCredential { url: url.to_owned(), service: Service::Azure });
    }
    if let Some(endpoint) = get(AzureConfigKey::Endpoint) {
        let is_plain = settings::check_endpoint(url, "BlobEndpoint", &endpoint)?;
        builder = builder.with_allow_http(is_plain);
    }
    for (key, value) in [
        (ClientConfigKey::ConnectTimeout, STORE_CONNECT_TIME),
        (ClientConfigKey::Timeout, settings::request_time(url)?),
    ] {
        let value = format!("{} seconds", value.as_secs());
        builder = builder.with_config(AzureConfigKey::Client(key), value);
    }
    builder.build().map_err(|error| settings::refused(url, &error))
}

/// The settings of the `AZURE_` variables that this client knows. Empty ones say nothing.
fn of_environment() -> MicrosoftAzureBuilder {
    let variables = settings::variables("AZURE_");
    let builder =
        variables.fold(MicrosoftAzureBuilder::new(), |builder, (name, value)| match name.parse() {
            Ok(key) => builder.with_config(key, value),
            Err(_) => builder,
        });
    // Where the identity of the machine is asked for on some of Azure's services.
    match settings::variable("IDENTITY_ENDPOINT") {
        Some(endpoint) => builder.with_msi_endpoint(endpoint),
        None => builder,
    }
}

fn connection_string(url: &str) -> Result<Option<String>, StoreError> {
    let Some(path) = settings::variable("AZURE_STORAGE_CONNECTION_STRING_FILE") else {
        return Ok(settings::variable("AZURE_STORAGE_CONNECTION_STRING"));
    };
    match settings::read(url, Path::new(&path))? {
        Some(text) => Ok(Some(text.trim().to_owned())),
        None => {
            let why = format!("there is no file {path} (AZURE_STORAGE_CONNECTION_STRING_FILE)");
            Err(StoreError::Settings { url: url.to_owned(), why })
        }
    }
}

/// What a connection string of a storage account says of its blobs.
#[derive(Debug, Default, PartialEq, Eq)]
struct ConnectionString {
    account: String,
    key: Option<String>,
    signature: Option<String>,
    endpoint: Option<String>,
}

impl ConnectionString {
    /// Reads `Name=value` pairs between semicolons; names that do not matter here are passed over.
    fn parse(text: &str) -> Result<Self, String> {
        let mut found = Self::default();
        let (mut protocol, mut suffix) = ("https", "core.windows.net");
        for pair in text.split(';').map(str::trim).filter(|pair| !pair.is_empty()) {
            // The text is a secret: it is not told.
            let (name, value) =
                pair.split_once('=').ok_or("a part of the connection string is no NAME=VALUE")?;
            let owned = || Some(value.to_owned());
            match name.to_ascii_lowercase().as_str() {
                "accountname" => found.account = value.to_owned(),
                "accountkey" => found.key = owned(),
                "sharedaccesssignature" => found.signature = owned(),
                "blobendpoint" => found.endpoint = Some(value.trim_end_matches('/').to_owned()),
                "defaultendpointsprotocol" => protocol = value,
                "endpointsuffix" => suffix = value,
                "usedevelopmentstorage" => {
                    return Err(
                        "UseDevelopmentStorage=true is not known here: give the emulator's \
                                account, key and BlobEndpoint, or AZURE_STORAGE_USE_EMULATOR=true"
                            .to_owned(),
                    );
                }
                _ => {}
            }
        }
        if found.account.is_empty() {
            return Err("the connection string has no AccountName".to_owned());
        }
        let account = &found.account;
        found.endpoint.get_or_insert_with(|| format!("{protocol}://{account}.blob.{suffix}"));
        Ok(found)
    }

    fn apply(self, builder: MicrosoftAzureBuilder) -> MicrosoftAzureBuilder {
        let settings = [
            (AzureConfigKey::AccountName, Some(self.account)),
            (AzureConfigKey::AccessKey, self.key),
            (AzureConfigKey::SasKey, self.signature),
            (AzureConfigKey::Endpoint, self.endpoint),
        ];
        settings.into_iter().fold(builder, |builder, (key, value)| match value {
            Some(value) => builder.with_config(key, value),
            None => builder,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_names_account_key_and_endpoint() {
        let found = ConnectionString::parse(
            "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=k+/==;EndpointSuffix=core.x;",
        );
        let endpoint = Some("https://a.blob.core.x".to_owned());
        let expected = ConnectionString {
            account: "a".to_owned(),
            key: Some("k+/==".to_owned()),
            signature: None,
            endpoint,
        };
        assert_eq!(found, Ok(expected));
        let found = ConnectionString::parse(
            "BlobEndpoint=http://127.0.0.1:1/a/;AccountName=a;SharedAccessSignature=sv=1&sig=2",
        )
        .unwrap();
        assert_eq!(found.endpoint.as_deref(), Some("http://127.0.0.1:1/a"));
        assert_eq!(found.signature.as_deref(), Some("sv=1&sig=2"));
    }

    #[test]
    fn a_connection_string_that_says_too_little_is_refused_without_telling_it() {
        for text in ["AccountKey=SECRET", "AccountName", "UseDevelopmentStorage=true;x=SECRET"] {
            let why = ConnectionString::parse(text).unwrap_err();
            assert!(!why.contains("SECRET"), "{why}");
        }
    }
}
