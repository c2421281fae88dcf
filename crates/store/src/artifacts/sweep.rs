//! Removing files that no row will ever name: of workers that died while they wrote, of deletions that broke off.

use std::collections::BTreeMap;
use std::time::Duration;

use inheritune_domain::artifact::ArtifactKind;
use inheritune_domain::id::JobId;

use super::ROOT;
use super::journal::delete_place;
use crate::rows;
use crate::{Store, StoreError};

/// Places that one statement looks at.
const BATCH: usize = 1_000;

/// Where one attempt wrote, or writes, one artifact.
struct Place {
    location: String,
    job: JobId,
    token: i64,
    /// When its newest file was written, in seconds since 1970.
    written_s: f64,
}

impl Store {
    /// Deletes the files of artifacts that have no row, or a deleted one, and cannot get one: their job is known here, the
    /// lease they were written under is over, and for `older_than` nothing was added. Says how many artifacts they
    /// were. Safe to call from several processes.
    ///
    /// # Errors
    /// The database's; the object store's.
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

    /// A token never comes back once it has left the queue, and whoever publishes holds its row: what this finds
    /// stays an orphan.
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

/// Reads `artifacts/{kind}/{job}/{token}-{n}/…`; whatever else lies there is left alone.
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
