//! S3, and stores that speak its protocol: endpoint, region and credential as the AWS tools find them.
//!
//! The environment comes first, then the profile of `~/.aws/credentials` and `~/.aws/config`, then
//! what the machine itself has (web identity, container, instance).

use super::settings::{self, Ini};
use super::{Service, StoreError, open};
use crate::limits::STORE_CONNECT_TIME;
use async_trait::async_trait;
use object_store::aws::{
    AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, S3ConditionalPut,
};
use object_store::{ClientConfigKey, CredentialProvider};
use std::path::PathBuf;
use std::sync::Arc;

/// Opens a bucket.
pub(super) fn open(url: &str, bucket: &str) -> Result<AmazonS3, StoreError> {
    let mut builder = of_environment()
        .with_bucket_name(bucket)
        .with_retry(open::retries())
        .with_conditional_put(S3ConditionalPut::ETagMatch);
    let profile = Profile::of_environment(url)?;
    let get = |builder: &AmazonS3Builder, key| builder.get_config_value(&key);
    if get(&builder, AmazonS3ConfigKey::Region).is_none()
        && let Some(region) = profile.setting("region")?
    {
        builder = builder.with_region(region);
    }
    let has_endpoint = get(&builder, AmazonS3ConfigKey::Endpoint).is_some()
        || get(&builder, AmazonS3ConfigKey::S3Endpoint).is_some();
    if !has_endpoint && let Some(endpoint) = profile.setting("endpoint_url")? {
        builder = builder.with_endpoint(endpoint);
    }
    if get(&builder, AmazonS3ConfigKey::AccessKeyId).is_none() && profile.credential()?.is_some() {
        builder = builder.with_credentials(Arc::new(profile));
    }
    let endpoint = get(&builder, AmazonS3ConfigKey::S3Endpoint)
        .or_else(|| get(&builder, AmazonS3ConfigKey::Endpoint));
    if let Some(endpoint) = endpoint {
        let is_plain = settings::check_endpoint(url, "AWS_ENDPOINT_URL", &endpoint)?;
        builder = builder.with_allow_http(is_plain);
    }
    for (key, value) in [
        (ClientConfigKey::ConnectTimeout, STORE_CONNECT_TIME),
        (ClientConfigKey::Timeout, settings::request_time(url)?),
    ] {
        let value = format!("{} seconds", value.as_secs());
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    builder.build().map_err(|error| settings::refused(url, &error))
}

/// The settings of the `AWS_` variables that this client knows. Empty ones say nothing.
fn of_environment() -> AmazonS3Builder {
    let variables = settings::variables("AWS_");
    variables.fold(AmazonS3Builder::new(), |builder, (name, value)| match name.parse() {
        Ok(key) => builder.with_config(key, value),
        Err(_) => builder,
    })
}

/// A profile of the AWS tools' files. The credential is looked up at each request, so that one that was
/// replaced counts at once.
#[derive(Debug)]
struct Profile {
    url: String,
    name: String,
    credentials: Option<PathBuf>,
    config: Option<PathBuf>,
}

impl Profile {
    fn of_environment(url: &str) -> Result<Self, StoreError> {
        let name = settings::variable("AWS_PROFILE");
        let is_named = name.is_some();
        let profile = Self {
            url: url.to_owned(),
            name: name.unwrap_or_else(|| "default".to_owned()),
            credentials: settings::file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
            config: settings::file("AWS_CONFIG_FILE", ".aws/config"),
        };
        if is_named && !profile.exists()? {
            let why = format!("there is no profile {:?} (AWS_PROFILE)", profile.name);
            return Err(StoreError::Settings { url: url.to_owned(), why });
        }
        Ok(profile)
    }

    fn exists(&self) -> Result<bool, StoreError> {
        Ok(self.sections()?.iter().any(|(ini, section)| ini.has(section)))
    }

    /// Both files with the name that the profile has there.
    fn sections(&self) -> Result<Vec<(Ini, String)>, StoreError> {
        let in_config = match self.name.as_str() {
            "default" => "default".to_owned(),
            name => format!("profile {name}"),
        };
        let files = [(&self.credentials, self.name.clone()), (&self.config, in_config)];
        let mut found = Vec::new();
        for (path, section) in files {
            let Some(path) = path else { continue };
            if let Some(ini) = Ini::read(&self.url, path)? {
                found.push((ini, section));
            }
        }
        Ok(found)
    }

    fn setting(&self, key: &str) -> Result<Option<String>, StoreError> {
        let sections = self.sections()?;
        Ok(sections.iter().find_map(|(ini, section)| ini.get(section, key)))
    }

    fn credential(&self) -> Result<Option<AwsCredential>, StoreError> {
        for (ini, section) in self.sections()? {
            let get = |key| ini.get(&section, key);
            if let (Some(key_id), Some(secret_key)) =
                (get("aws_access_key_id"), get("aws_secret_access_key"))
            {
                let token = get("aws_session_token");
                return Ok(Some(AwsCredential { key_id, secret_key, token }));
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl CredentialProvider for Profile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let missing = || StoreError::NoCredential { url: self.url.clone(), service: Service::S3 };
        let found = self.credential().and_then(|found| found.ok_or_else(missing));
        found
            .map(Arc::new)
            .map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })
    }
}
