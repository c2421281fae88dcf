//! Closed sets of names: each value and its name are declared once. Recipes, JSON, SQL, the command
//! line and the gRPC API all use that name.

/// A type declared by [`named!`].
pub trait Named: Copy + 'static {
    /// Every value, in declaration order.
    fn all() -> &'static [Self];
    /// Returns the value's name.
    fn name(self) -> &'static str;
}

/// Declares an enumeration together with the name of each value: `enum Kind { Tokenize = "tokenize", }`.
#[macro_export]
macro_rules! named {
    ($(#[$meta:meta])* $vis:vis enum $Name:ident { $($(#[$value_meta:meta])* $Value:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        $vis enum $Name {
            $($(#[$value_meta])* #[serde(rename = $name)] $Value,)+
        }

        impl $Name {
            /// Every value, in declaration order.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$Value),+];

            /// Returns the name used in recipes, JSON, SQL and messages.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$Value => $name,)+
                }
            }

            /// Returns the value named `name`.
            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|value| value.as_str() == name)
            }
        }

        impl $crate::names::Named for $Name {
            fn all() -> &'static [Self] {
                &Self::ALL
            }

            fn name(self) -> &'static str {
                self.as_str()
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
