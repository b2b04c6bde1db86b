//! `GET /v1/models` as clients of this dialect read it.

use serde::{Deserialize, Serialize};

/// A page of models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelPage {
    /// The models.
    pub data: Vec<ModelInfo>,
    /// There are more after the last one.
    pub has_more: bool,
    /// Id of the first one.
    pub first_id: Option<String>,
    /// Id of the last one.
    pub last_id: Option<String>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// `model`.
    #[serde(rename = "type")]
    pub r#type: String,
    /// What to write in a request.
    pub id: String,
    /// Its name for people.
    pub display_name: String,
    /// RFC 3339.
    pub created_at: String,
    /// Longest prompt, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_input_tokens: Option<u64>,
    /// Longest answer, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
}

impl ModelInfo {
    /// A model; `created` in seconds since 1970.
    pub fn new(id: impl Into<String>, created: u64) -> Self {
        let id = id.into();
        Self {
            r#type: "model".to_owned(),
            display_name: id.clone(),
            id,
            created_at: rfc3339(created),
            max_input_tokens: None,
            max_tokens: None,
        }
    }
}

impl ModelPage {
    /// The page a client asked for with `limit`, `after_id` and `before_id`.
    pub fn of(models: &[ModelInfo], limit: usize, after_id: Option<&str>, before_id: Option<&str>) -> Self {
        let position = |id: &str| models.iter().position(|model| model.id == id);
        let limit = limit.max(1);
        let (page, has_more) = match (after_id.and_then(position), before_id.and_then(position)) {
            (_, Some(end)) => (&models[end.saturating_sub(limit)..end], end > limit),
            (after, None) => {
                let start = after.map_or(0, |at| at + 1);
                let end = models.len().min(start + limit);
                (&models[start..end], end < models.len())
            }
        };
        Self {
            has_more,
            first_id: page.first().map(|model| model.id.clone()),
            last_id: page.last().map(|model| model.id.clone()),
            data: page.to_vec(),
        }
    }
}

/// `2026-11-21T18:00:00Z`, from seconds since 1970.
///
/// The calendar arithmetic counts years from 1 March of year 0, so that leap days come last.
pub fn rfc3339(seconds: u64) -> String {
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_calendars() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_795_284_000, "2026-11-21T18:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, date) in cases {
            assert_eq!(rfc3339(seconds), date);
        }
    }

    #[test]
    fn pages_cut_the_list() {
        let models: Vec<_> = ["a", "b", "c", "d"].map(|id| ModelInfo::new(id, 0)).into();
        let ids = |page: &ModelPage| page.data.iter().map(|model| model.id.clone()).collect::<String>();
        let cases = [
            (2, None, None, "ab", true),
            (2, Some("b"), None, "cd", false),
            (9, None, None, "abcd", false),
            (2, None, Some("d"), "bc", true),
            (5, None, Some("b"), "a", false),
            (5, Some("d"), None, "", false),
        ];
        for (limit, after, before, expected, more) in cases {
            let page = ModelPage::of(&models, limit, after, before);
            assert_eq!(
                (ids(&page).as_str(), page.has_more),
                (expected, more),
                "{limit} {after:?} {before:?}"
            );
            assert_eq!(page.last_id, expected.chars().last().map(String::from));
        }
    }
}
