//! Enumerations on the wire: `JOB_KIND_TOKENIZE` is the value of `JobKind` that the domain calls
//! `tokenize`. The mapping relies only on the names; a test checks all values of both.

use inheritune_checkpoint::decoder_config::Family;
use inheritune_checkpoint::inherit_set::InheritPart;
use inheritune_domain::artifact::ArtifactKind;
use inheritune_domain::job::JobStatus;
use inheritune_domain::names::Named;
use inheritune_domain::spec::{DecayOn, GrowthSource, JobKind, MatchBy, Precision, Recipe, Sampling, Schedule};

use super::fields::Field;
use crate::v1;

/// A domain enumeration with a counterpart in the proto files, which has the same values and
/// "unspecified".
pub(crate) trait OnWire: Named + PartialEq {
    /// The enumeration in the proto files.
    type Wire: TryFrom<i32> + Copy;
    /// The prefix of its value names: `JOB_KIND_`.
    const PREFIX: &'static str;
    /// Returns the name of a value in the proto file.
    fn wire_name(value: Self::Wire) -> &'static str;
}

fn to_wire_name<D: OnWire>(value: D) -> String {
    format!("{}{}", D::PREFIX, value.name().to_ascii_uppercase().replace('-', "_"))
}

/// Returns the domain value, or `None` for "unspecified".
fn of_wire<D: OnWire>(value: D::Wire) -> Option<D> {
    let name = D::wire_name(value);
    D::all().iter().copied().find(|of_domain| to_wire_name(*of_domain) == name)
}

impl Field<'_> {
    /// Returns the domain value of an enumeration, or `None` if it is unspecified or unknown. An
    /// unknown value is a violation.
    pub(crate) fn named<D: OnWire>(&mut self, value: i32) -> Option<D> {
        of_wire(self.known(value)?)
    }
}

/// Implements [`OnWire`] for pairs of enumerations, and generates a test over their values.
macro_rules! wire {
    ($($name:ident $prefix:literal;)+) => {
        $(
            impl OnWire for $name {
                type Wire = v1::$name;
                const PREFIX: &'static str = $prefix;

                fn wire_name(value: Self::Wire) -> &'static str {
                    value.as_str_name()
                }
            }

            impl From<$name> for v1::$name {
                fn from(value: $name) -> Self {
                    Self::from_str_name(&to_wire_name(value)).unwrap_or_default()
                }
            }
        )+

        #[cfg(test)]
        mod tests {
            use super::*;

            /// Checks that every domain value has a value on the wire, and vice versa.
            fn agree<D: OnWire + std::fmt::Debug>()
            where
                D::Wire: From<D>,
            {
                for value in D::all() {
                    assert_eq!(of_wire::<D>(D::Wire::from(*value)), Some(*value));
                }
                let values = (0..100).filter_map(|number| D::Wire::try_from(number).ok());
                let without = values.filter(|value| of_wire::<D>(*value).is_none()).map(D::wire_name);
                assert_eq!(without.collect::<Vec<_>>(), [format!("{}UNSPECIFIED", D::PREFIX)]);
            }

            #[test]
            fn every_value_has_its_name_on_the_wire() {
                $(agree::<$name>();)+
            }
        }
    };
}

wire! {
    ArtifactKind "ARTIFACT_KIND_";
    DecayOn "DECAY_ON_";
    Family "FAMILY_";
    GrowthSource "GROWTH_SOURCE_";
    InheritPart "INHERIT_PART_";
    JobKind "JOB_KIND_";
    JobStatus "JOB_STATUS_";
    MatchBy "MATCH_BY_";
    Precision "PRECISION_";
    Recipe "RECIPE_";
    Sampling "SAMPLING_";
    Schedule "SCHEDULE_";
}
