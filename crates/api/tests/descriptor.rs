//! The wire contract is additive only. `tests/descriptor.txt` lists every method, field and enum
//! value with its number. This test fails if a line is missing or changed. Accept new lines with
//! `UPDATE_EXPECT=1`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use expect_test::expect_file;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};

const RECORDED: &str = include_str!("descriptor.txt");

fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(inheritune_api::FILE_DESCRIPTOR_SET).unwrap();
    set.file.into_iter().filter(|file| file.package() == "inheritune.v1").collect()
}

fn lines() -> Vec<String> {
    let mut lines = Vec::new();
    for file in files() {
        for service in &file.service {
            for method in &service.method {
                let stream = if method.server_streaming() { "stream " } else { "" };
                lines.push(format!(
                    "rpc {}.{}({}) returns ({stream}{})",
                    service.name(),
                    method.name(),
                    method.input_type(),
                    method.output_type()
                ));
            }
        }
        for message in &file.message_type {
            message_lines(message.name(), message, &mut lines);
        }
        for enumeration in &file.enum_type {
            enum_lines(enumeration, &mut lines);
        }
    }
    lines.sort();
    lines
}

fn message_lines(name: &str, message: &DescriptorProto, lines: &mut Vec<String>) {
    for field in &message.field {
        lines.push(format!("field {name}.{} = {} {}", field.name(), field.number(), kind(message, field)));
    }
    for enumeration in &message.enum_type {
        enum_lines(enumeration, lines);
    }
    for nested in &message.nested_type {
        message_lines(&format!("{name}.{}", nested.name()), nested, lines);
    }
}

fn kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let oneof = match field.oneof_index {
        Some(_) if field.proto3_optional() => "optional ".to_owned(),
        Some(index) => format!("oneof {} ", message.oneof_decl[index as usize].name()),
        None if field.label() == Label::Repeated => "repeated ".to_owned(),
        None => String::new(),
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    format!("{oneof}{kind}")
}

fn enum_lines(enumeration: &EnumDescriptorProto, lines: &mut Vec<String>) {
    for value in &enumeration.value {
        lines.push(format!("value {}.{} = {}", enumeration.name(), value.name(), value.number()));
    }
}

#[test]
fn nothing_recorded_has_gone_or_changed() {
    let now: BTreeSet<String> = lines().into_iter().collect();
    let broken: Vec<&str> = RECORDED.lines().filter(|line| !now.contains(*line)).collect();
    assert!(broken.is_empty(), "old clients would break; these are gone or changed:\n{}", broken.join("\n"));
}

#[test]
fn everything_is_recorded() {
    expect_file!["./descriptor.txt"].assert_eq(&(lines().join("\n") + "\n"));
}

#[test]
fn everything_has_a_comment() {
    let mut bare = Vec::new();
    for file in files() {
        let commented: BTreeSet<Vec<i32>> = file
            .source_code_info
            .iter()
            .flat_map(|info| &info.location)
            .filter(|location| !location.leading_comments().trim().is_empty())
            .map(|location| location.path.clone())
            .collect();
        let mut expected: Vec<(String, Vec<i32>)> = Vec::new();
        for (i, message) in file.message_type.iter().enumerate() {
            expected.push((message.name().to_owned(), vec![4, i as i32]));
            for (j, field) in message.field.iter().enumerate() {
                expected.push((format!("{}.{}", message.name(), field.name()), vec![4, i as i32, 2, j as i32]));
            }
        }
        for (i, enumeration) in file.enum_type.iter().enumerate() {
            expected.push((enumeration.name().to_owned(), vec![5, i as i32]));
            for (j, value) in enumeration.value.iter().enumerate() {
                expected.push((value.name().to_owned(), vec![5, i as i32, 2, j as i32]));
            }
        }
        for (i, service) in file.service.iter().enumerate() {
            expected.push((service.name().to_owned(), vec![6, i as i32]));
            for (j, method) in service.method.iter().enumerate() {
                expected.push((format!("{}.{}", service.name(), method.name()), vec![6, i as i32, 2, j as i32]));
            }
        }
        bare.extend(expected.into_iter().filter(|(_, path)| !commented.contains(path)).map(|(name, _)| name));
    }
    assert!(bare.is_empty(), "without a comment: {bare:?}");
}
