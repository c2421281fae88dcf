//! Translates error messages of the services, which name configuration fields, to command-line
//! flags.

/// Configuration fields and the flags that replace them. A field comes before the fields that it
/// contains.
const FLAGS: [(&str, &str); 16] = [
    ("security.plaintext = \"anywhere\"", "--plaintext-anywhere"),
    ("security.callers = \"anyone\"", "--callers-anyone"),
    ("security.certificate_file and key_file", "--certificate-file and --key-file"),
    ("`security.certificate_file`", "--certificate-file"),
    ("security.certificate_file", "--certificate-file"),
    ("`security.key_file`", "--key-file"),
    ("security.key_file", "--key-file"),
    ("`security.bearer_token_file`", "--bearer-token-file"),
    ("security.bearer_token_file", "--bearer-token-file"),
    ("`telemetry.metrics_listen`", "--metrics-listen"),
    ("telemetry.otlp_endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ("`listen`", "--listen"),
    ("objects.allowed_uris", "--allow-uri"),
    ("worker.threads", "--threads"),
    ("worker.job_memory_max_bytes", "--job-memory-max-bytes"),
    ("worker.job_disk_max_bytes", "--job-disk-max-bytes"),
];

/// Replaces the configuration fields in `message` with command-line flags.
pub(crate) fn in_flags(message: String) -> String {
    FLAGS.iter().fold(message, |message, (field, flag)| message.replace(field, flag))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use inheritune_objects::{Objects, ObjectsConfig, StorageConfig};
    use inheritune_runtime::security::SecurityConfig;

    use super::*;

    #[test]
    fn u4_errors_name_flags() {
        let address = "0.0.0.0:1".parse().unwrap();
        let half = SecurityConfig { certificate_file: Some("x.pem".into()), ..SecurityConfig::default() };
        let other_half = SecurityConfig { key_file: Some("x.pem".into()), ..SecurityConfig::default() };
        let security = SecurityConfig::default().load().unwrap();
        let objects = ObjectsConfig { storage: StorageConfig::Memory, allowed_uris: vec!["http://x".to_owned()] };
        let errors = [
            (security.check_grpc(address).unwrap_err().to_string(), "--listen 0.0.0.0:1"),
            (
                security.check_plaintext("telemetry.metrics_listen", address).unwrap_err().to_string(),
                "--metrics-listen",
            ),
            (half.load().map(|_| ()).unwrap_err().to_string(), "--key-file is missing"),
            (other_half.load().map(|_| ()).unwrap_err().to_string(), "--certificate-file is missing"),
            (Objects::new(&objects).unwrap_err().to_string(), "--allow-uri"),
        ];
        for (error, flag) in errors {
            let said = in_flags(error);
            assert!(said.contains(flag), "{said}");
            for field in ["security.", "telemetry.", "`listen`", "allowed_uris", "key_file", "worker."] {
                assert!(!said.contains(field), "{said}");
            }
        }
    }
}
