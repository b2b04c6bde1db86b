//! `priority`: lower class first, then lower priority, then what served longest ago; never what is more
//! important than the model that wants in.

use plugin_sdk::{EvictChoice, EvictRequest, Evictor, Explain, Purpose, Resident, Result};

use crate::select;

/// By class, priority and time of last use.
pub struct Priority;

plugin_sdk::evictor!(
    "priority",
    "the least important model goes first, and never one more important than the newcomer",
    Priority::from_options
);

impl Priority {
    /// Takes no options.
    ///
    /// # Errors
    /// `InvalidInput` when there are any.
    pub fn from_options(options: &str) -> Result<Box<dyn Evictor>> {
        strategy_options::none("priority", options)?;
        Ok(Box::new(Self))
    }
}

/// Equal importance may be displaced, or nothing could ever swap back.
fn may_displace(request: &EvictRequest, resident: &Resident) -> bool {
    request.purpose == Purpose::SWEEP
        || (resident.class, resident.priority) <= (request.class, request.priority)
}

impl Evictor for Priority {
    fn choose(
        &self,
        request: &EvictRequest,
        residents: &[Resident],
        explain: &mut Explain<'_>,
    ) -> Result<EvictChoice> {
        let allowed: Vec<Resident> = residents
            .iter()
            .map(|resident| Resident {
                eligible: u32::from(select::eligible(resident) && may_displace(request, resident)),
                ..*resident
            })
            .collect();
        let score = |resident: &Resident| {
            let idle_s = select::idle_ms(request, resident) as f64 / 1000.0;
            // Idle time only orders models of equal importance: it is worth less than one step of priority.
            f64::from(resident.class) * 1e10 + f64::from(resident.priority) - idle_s / (idle_s + 1.0)
        };
        Ok(select::ascending(request, &allowed, explain, score, |resident| {
            format!("class={} priority={}", resident.class, resident.priority)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{need, resident, victims};

    #[test]
    fn table() {
        let model = |class, priority, ago_ms: u64| Resident {
            class,
            priority,
            last_used_ms: 10_000_000 - ago_ms,
            ..resident(1)
        };
        let cases: &[(&str, EvictRequest, Vec<Resident>, &[usize])] = &[
            ("lower priority first", need(1), vec![model(1, 0, 9), model(1, -1, 1)], &[1]),
            ("lower class before priority", need(1), vec![model(1, -9, 9), model(0, 0, 1)], &[1]),
            ("age among equals", need(1), vec![model(1, 0, 1000), model(1, 0, 2000)], &[1]),
            ("higher priority stays", need(101), vec![model(1, 1, 9), model(1, 0, 9)], &[]),
            ("higher class stays", need(1), vec![model(2, -5, 9)], &[]),
            ("equals may swap both ways", need(1), vec![model(1, 0, 9)], &[0]),
            (
                "an important newcomer",
                EvictRequest { priority: 5, ..need(101) },
                vec![model(1, 1, 9), model(1, 0, 9)],
                &[1, 0],
            ),
        ];
        for (name, request, residents, expected) in cases {
            assert_eq!(victims(&Priority, request, residents), *expected, "{name}");
        }
    }
}
