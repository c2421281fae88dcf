//! Removal of orphaned files, which no row refers to: those of workers that died during a write and
//! of interrupted deletions.

use std::collections::BTreeMap;
use std::time::Duration;

use inheritune_domain::artifact::ArtifactKind;
use inheritune_domain::id::JobId;

use super::ROOT;
use super::journal::delete_place;
use crate::rows;
use crate::{Store, StoreError};

/// Locations that one statement checks.
const BATCH: usize = 1_000;

/// The location of one artifact of one attempt.
struct Place {
    location: String,
    job: JobId,
    token: i64,
    /// Modification time of the newest file, in seconds since 1970.
    written_s: f64,
}

impl Store {
    /// Deletes the files of artifacts that have no row or a deleted one, and that can no longer get
    /// a row: the job is in this database, the lease is over, and no file was added for
    /// `older_than`. Returns the number of such artifacts. Safe to call from several processes.
    ///
    /// # Errors
    /// Errors of the database or the object store.
    pub async fn sweep_orphans(&self, older_than: Duration) -> Result<u64, StoreError> {
        let mut places: BTreeMap<String, Place> = BTreeMap::new();
        for (key, written_s) in self.objects.written(ROOT).await? {
            let Some((location, job, token)) = read_place(&key) else { continue };
            let place = Place { location: location.clone(), job, token, written_s };
            let place = places.entry(location).or_insert(place);
            place.written_s = place.written_s.max(written_s);
        }
        let places: Vec<Place> = places.into_values().collect();
        let mut swept = 0;
        for batch in places.chunks(BATCH) {
            for location in self.orphans(batch, older_than).await? {
                delete_place(&self.objects, &location).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Returns the orphaned locations. They remain orphans, because a lease token that has left the
    /// queue is never used again, and publishing locks the token's row.
    async fn orphans(&self, places: &[Place], older_than: Duration) -> Result<Vec<String>, StoreError> {
        let locations: Vec<String> = places.iter().map(|place| place.location.clone()).collect();
        let jobs: Vec<uuid::Uuid> = places.iter().map(|place| place.job.0).collect();
        let tokens: Vec<i64> = places.iter().map(|place| place.token).collect();
        let written_s: Vec<f64> = places.iter().map(|place| place.written_s).collect();
        Ok(sqlx::query_scalar!(
            r#"-- artifacts.orphans
             SELECT p.location AS "location!"
             FROM unnest($1::text[], $2::uuid[], $3::bigint[], $4::float8[]) AS p (location, job_id, token, written_s)
             WHERE to_timestamp(p.written_s) < now() - $5::bigint * interval '1 second'
               -- Another deployment's, in the same bucket, are not ours to judge.
               AND EXISTS (SELECT FROM jobs j WHERE j.id = p.job_id)
               AND NOT EXISTS (SELECT FROM job_queue q WHERE q.job_id = p.job_id AND q.lease_token = p.token)
               AND NOT EXISTS (SELECT FROM artifacts a
                               WHERE a.job_id = p.job_id AND a.location = p.location AND a.deleted_at IS NULL)"#,
            &locations,
            &jobs,
            &tokens,
            &written_s,
            rows::signed(older_than.as_secs()),
        )
        .fetch_all(&self.pool)
        .await?)
    }
}

/// Parses a key of the form `artifacts/{kind}/{job}/{token}-{n}/…`. Other keys are ignored.
fn read_place(key: &str) -> Option<(String, JobId, i64)> {
    let mut parts = key.splitn(5, '/');
    let (root, kind, job, attempt) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    parts.next()?;
    let (token, _) = attempt.split_once('-')?;
    if root != ROOT || ArtifactKind::parse(kind).is_none() {
        return None;
    }
    Some((format!("{root}/{kind}/{job}/{attempt}"), job.parse().ok()?, token.parse().ok()?))
}
