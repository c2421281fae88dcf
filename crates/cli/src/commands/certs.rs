//! `certs init`: a certificate authority and a server certificate, for clusters without their own
//! authority.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::{read_file, say, say_text};
use crate::args::{Global, InitCerts, Output};
use crate::failure::Failure;

/// Validity of a certificate authority.
const AUTHORITY_DAYS: i64 = 3650;
/// Certificates are backdated by this much, because clocks of other machines may be behind.
const BEFORE: Duration = Duration::hours(1);

/// Runs `certs init`.
pub(super) fn init(global: &Global, command: &InitCerts) -> Result<(), Failure> {
    let dir = &command.dir;
    let path = |name: &str| dir.join(name);
    if !command.force && (path("server.pem").exists() || path("server.key").exists()) {
        return Err(Failure::invalid(format!(
            "{}: already contains a server certificate; add --force to replace it",
            dir.display()
        )));
    }
    std::fs::create_dir_all(dir).map_err(|e| Failure::local(dir, e))?;
    let (authority_pem, issuer) = match (path("ca.pem").exists(), path("ca.key").exists()) {
        (true, true) => authority_of(&path("ca.pem"), &path("ca.key"))?,
        (false, false) => new_authority(dir)?,
        (true, false) | (false, true) => {
            let problem = "contains only one of ca.pem and ca.key; add the other one, or remove it".to_owned();
            return Err(Failure::invalid(format!("{}: {problem}", dir.display())));
        }
    };
    let made = |e: rcgen::Error| Failure::invalid(format!("cannot create the certificate: {e}"));
    let mut server = CertificateParams::new(command.hosts.clone()).map_err(made)?;
    server.distinguished_name.push(DnType::CommonName, command.hosts.first().cloned().unwrap_or_default());
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    (server.not_before, server.not_after) = validity(i64::from(command.days));
    let key = KeyPair::generate().map_err(made)?;
    let certificate = server.signed_by(&key, &issuer).map_err(made)?;
    write(&path("server.key"), &key.serialize_pem(), SECRET)?;
    write(&path("server.pem"), &(certificate.pem() + &authority_pem), PUBLIC)?;
    match global.output {
        Output::Table => say_text(&format!(
            "{}: a certificate for {}, valid for {} days\n  services: [security] certificate_file = server.pem, \
             key_file = server.key\n  clients:  --ca-file ca.pem",
            dir.display(),
            command.hosts.join(", "),
            command.days,
        )),
        Output::Json => say(&json!({
            "folder": dir,
            "hosts": command.hosts,
            "days": command.days,
            "certificate_file": path("server.pem"),
            "key_file": path("server.key"),
            "ca_file": path("ca.pem"),
        })
        .to_string()),
    }
}

fn new_authority(dir: &Path) -> Result<(String, Issuer<'static, KeyPair>), Failure> {
    let made = |e: rcgen::Error| Failure::invalid(format!("cannot create the certificate authority: {e}"));
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Inheritune cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(AUTHORITY_DAYS);
    let key = KeyPair::generate().map_err(made)?;
    let pem = params.self_signed(&key).map_err(made)?.pem();
    write(&dir.join("ca.key"), &key.serialize_pem(), SECRET)?;
    write(&dir.join("ca.pem"), &pem, PUBLIC)?;
    Ok((pem, Issuer::new(params, key)))
}

fn authority_of(certificate: &Path, key: &Path) -> Result<(String, Issuer<'static, KeyPair>), Failure> {
    let pem = read_file(certificate)?;
    let bad = |path: &Path, e: rcgen::Error| Failure::invalid(format!("{}: cannot be used: {e}", path.display()));
    let pair = KeyPair::from_pem(&read_file(key)?).map_err(|e| bad(key, e))?;
    let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(|e| bad(certificate, e))?;
    Ok((pem, issuer))
}

fn validity(days: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BEFORE, now + Duration::days(days))
}

/// File modes: readable by the owner, or by everyone.
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// Replaces a file atomically: readers see the old file or the complete new one.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let part = path.with_extension("part");
    // A part left by a killed command may have a different mode.
    drop(std::fs::remove_file(&part));
    let written = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&part);
    written
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(|e| Failure::local(path, e))
}
