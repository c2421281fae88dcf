//! The subjects of MMLU (Hendrycks et al. 2021).

use self::Category::{Humanities, Other, SocialSciences, Stem};
use super::{Benchmark, Dataset, Prompt};

/// The categories of the subjects, which are the groups of the harness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Category {
    Humanities,
    Other,
    SocialSciences,
    Stem,
}

/// A subject.
#[derive(Debug)]
pub(super) struct Subject {
    /// Its name as a task: `mmlu_abstract_algebra`.
    name: &'static str,
    /// Its name as it appears in the prompt: `abstract algebra`.
    written: &'static str,
    pub(super) category: Category,
    /// Number of questions in the test split.
    rows: u32,
}

impl Subject {
    /// Returns the subject as a [`Benchmark`].
    pub(super) fn benchmark(&self) -> Benchmark {
        Benchmark {
            name: self.name,
            version: "1.0",
            prompt: Prompt::Mmlu { subject: self.written },
            dataset: Dataset { folder: "mmlu", split: "test", hub: "cais/mmlu" },
            rows: self.rows,
        }
    }
}

const fn subject(name: &'static str, written: &'static str, category: Category, rows: u32) -> Subject {
    Subject { name, written, category, rows }
}

/// All subjects, sorted by name.
#[rustfmt::skip]
pub(super) const SUBJECTS: [Subject; 57] = [
    subject("mmlu_abstract_algebra", "abstract algebra", Stem, 100),
    subject("mmlu_anatomy", "anatomy", Stem, 135),
    subject("mmlu_astronomy", "astronomy", Stem, 152),
    subject("mmlu_business_ethics", "business ethics", Other, 100),
    subject("mmlu_clinical_knowledge", "clinical knowledge", Other, 265),
    subject("mmlu_college_biology", "college biology", Stem, 144),
    subject("mmlu_college_chemistry", "college chemistry", Stem, 100),
    subject("mmlu_college_computer_science", "college computer science", Stem, 100),
    subject("mmlu_college_mathematics", "college mathematics", Stem, 100),
    subject("mmlu_college_medicine", "college medicine", Other, 173),
    subject("mmlu_college_physics", "college physics", Stem, 102),
    subject("mmlu_computer_security", "computer security", Stem, 100),
    subject("mmlu_conceptual_physics", "conceptual physics", Stem, 235),
    subject("mmlu_econometrics", "econometrics", SocialSciences, 114),
    subject("mmlu_electrical_engineering", "electrical engineering", Stem, 145),
    subject("mmlu_elementary_mathematics", "elementary mathematics", Stem, 378),
    subject("mmlu_formal_logic", "formal logic", Humanities, 126),
    subject("mmlu_global_facts", "global facts", Other, 100),
    subject("mmlu_high_school_biology", "high school biology", Stem, 310),
    subject("mmlu_high_school_chemistry", "high school chemistry", Stem, 203),
    subject("mmlu_high_school_computer_science", "high school computer science", Stem, 100),
    subject("mmlu_high_school_european_history", "high school european history", Humanities, 165),
    subject("mmlu_high_school_geography", "high school geography", SocialSciences, 198),
    subject("mmlu_high_school_government_and_politics", "high school government and politics", SocialSciences, 193),
    subject("mmlu_high_school_macroeconomics", "high school macroeconomics", SocialSciences, 390),
    subject("mmlu_high_school_mathematics", "high school mathematics", Stem, 270),
    subject("mmlu_high_school_microeconomics", "high school microeconomics", SocialSciences, 238),
    subject("mmlu_high_school_physics", "high school physics", Stem, 151),
    subject("mmlu_high_school_psychology", "high school psychology", SocialSciences, 545),
    subject("mmlu_high_school_statistics", "high school statistics", Stem, 216),
    subject("mmlu_high_school_us_history", "high school us history", Humanities, 204),
    subject("mmlu_high_school_world_history", "high school world history", Humanities, 237),
    subject("mmlu_human_aging", "human aging", Other, 223),
    subject("mmlu_human_sexuality", "human sexuality", SocialSciences, 131),
    subject("mmlu_international_law", "international law", Humanities, 121),
    subject("mmlu_jurisprudence", "jurisprudence", Humanities, 108),
    subject("mmlu_logical_fallacies", "logical fallacies", Humanities, 163),
    subject("mmlu_machine_learning", "machine learning", Stem, 112),
    subject("mmlu_management", "management", Other, 103),
    subject("mmlu_marketing", "marketing", Other, 234),
    subject("mmlu_medical_genetics", "medical genetics", Other, 100),
    subject("mmlu_miscellaneous", "miscellaneous", Other, 783),
    subject("mmlu_moral_disputes", "moral disputes", Humanities, 346),
    subject("mmlu_moral_scenarios", "moral scenarios", Humanities, 895),
    subject("mmlu_nutrition", "nutrition", Other, 306),
    subject("mmlu_philosophy", "philosophy", Humanities, 311),
    subject("mmlu_prehistory", "prehistory", Humanities, 324),
    subject("mmlu_professional_accounting", "professional accounting", Other, 282),
    subject("mmlu_professional_law", "professional law", Humanities, 1534),
    subject("mmlu_professional_medicine", "professional medicine", Other, 272),
    subject("mmlu_professional_psychology", "professional psychology", SocialSciences, 612),
    subject("mmlu_public_relations", "public relations", SocialSciences, 110),
    subject("mmlu_security_studies", "security studies", SocialSciences, 245),
    subject("mmlu_sociology", "sociology", SocialSciences, 201),
    subject("mmlu_us_foreign_policy", "us foreign policy", SocialSciences, 100),
    subject("mmlu_virology", "virology", Other, 166),
    subject("mmlu_world_religions", "world religions", Humanities, 171),
];
