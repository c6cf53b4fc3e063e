//! What each write does to the objects: creates, updates, statuses and deletes by Tombolo, declarations by files.
//! Refusals name the object and who owns what was to be changed.

use serde_json::{Value, json};

use super::objects::Planned;
use super::record::{
    Birth, Origin, Overlay, Record, endpoint_conditions, metadata_of, metadata_text, owners, same_spec,
    set_endpoint_conditions, set_status, set_texts, texts,
};
use crate::Error;
use crate::backend::{KindName, Preconditions};
use crate::kinds::{self, Known, Refusal};
use crate::manifest::Key;

/// Takes an object in by its kind's door.
fn admitted(kind: KindName, object: Value) -> Result<(&'static Known, Key, Value), Error> {
    let known =
        kinds::of(kind).ok_or_else(|| Error::Forbidden(format!("objects of kind {} are not kept here", kind.kind)))?;
    let key = Key::of(known.name, &object);
    let object = known.admit(object).map_err(|refusal| match refusal {
        Refusal::Rules(violations) => Error::Invalid { object: key.to_string(), violations },
        Refusal::Shape(detail) => Error::Malformed { object: key.to_string(), detail },
    })?;
    Ok((known, key, object))
}

pub(crate) fn create(planned: &mut Planned<'_>, kind: KindName, object: Value) -> Result<Value, Error> {
    let (known, key, mut object) = admitted(kind, object)?;
    if planned.get(&key).is_some() {
        return Err(Error::AlreadyExists(key.to_string()));
    }
    orphan(planned, &key, &object)?;
    // As the API server does: a status is written by its own call. A Node registers itself with one.
    if known.name.kind != "Node" {
        set_status(&mut object, None);
    }
    let birth = planned.birth();
    let version = planned.next_version();
    stamp(&mut object, &birth.uid, &birth.time, 1, version);
    planned.put(key, Record { origin: Origin::Tombolo, overlay: Overlay::default(), object: object.clone() });
    Ok(object)
}

pub(crate) fn update(planned: &mut Planned<'_>, kind: KindName, object: Value) -> Result<Value, Error> {
    let (_, key, mut object) = admitted(kind, object)?;
    let before = expected(planned, &key, &object)?;
    set_status(&mut object, before.object.get("status").cloned());
    let mut overlay = before.overlay.clone();
    if let Origin::Manifest(file) = &before.origin {
        (object, overlay) = overlaid(&key, file, &before, object)?;
    } else if owners(&object) != before.owners() {
        orphan(planned, &key, &object)?;
    }
    Ok(replace(planned, key, &before, Record { origin: before.origin.clone(), overlay, object }, false))
}

pub(crate) fn update_status(planned: &mut Planned<'_>, kind: KindName, object: Value) -> Result<Value, Error> {
    // Only the status is taken, and a status breaks no rule of the spec: read the shape, not the rules.
    let known =
        kinds::of(kind).ok_or_else(|| Error::Forbidden(format!("objects of kind {} are not kept here", kind.kind)))?;
    let key = Key::of(known.name, &object);
    if !known.has_status {
        return Err(Error::Forbidden(format!("a {} has no status", kind.kind)));
    }
    let before = expected(planned, &key, &object)?;
    let mut after = (*before).clone();
    if kind.kind == "EndpointSlice" {
        // What is measured of an endpoint stands where its readers look for it: in its conditions.
        let measured = endpoint_conditions(&object);
        set_endpoint_conditions(&mut after.object, &measured);
        after.overlay.endpoint_conditions.extend(measured);
        after.overlay.endpoint_conditions.retain(|name, _| endpoint_conditions(&after.object).contains_key(name));
    } else {
        set_status(&mut after.object, object.get("status").cloned());
        after.overlay.status_written = true;
    }
    after.object = match known.admit(after.object) {
        Ok(object) => object,
        Err(Refusal::Rules(violations)) => return Err(Error::Invalid { object: key.to_string(), violations }),
        Err(Refusal::Shape(detail)) => return Err(Error::Malformed { object: key.to_string(), detail }),
    };
    Ok(replace(planned, key, &before, after, true))
}

pub(crate) fn delete(planned: &mut Planned<'_>, key: &Key, only_if: &Preconditions) -> Result<(), Error> {
    let Some(record) = planned.get(key) else { return Ok(()) };
    let conflict = |field: &str, wanted: &str, got: &str| Error::Conflict {
        object: key.to_string(),
        detail: format!("its {field} is {got}, not {wanted}"),
    };
    if let Some(uid) = &only_if.uid
        && uid != record.uid()
    {
        return Err(conflict("uid", uid, record.uid()));
    }
    if let Some(version) = &only_if.resource_version
        && version != record.resource_version()
    {
        return Err(conflict("resourceVersion", version, record.resource_version()));
    }
    match &record.origin {
        Origin::Manifest(file) => Err(Error::Forbidden(format!("the manifest {file} defines {key}: remove it there"))),
        Origin::Implied => Err(Error::Forbidden(format!("{key} is there because objects in it are: delete those"))),
        Origin::Tombolo => {
            planned.remove(key);
            Ok(())
        }
    }
}

/// A user's file says this of an object.
pub(crate) fn declare(planned: &mut Planned<'_>, key: &Key, file: &str, declared: &Value) {
    let origin = Origin::Manifest(file.to_owned());
    let mut object = declared.clone();
    let Some(before) = planned.get(key).cloned() else {
        let birth = planned.birth();
        let version = planned.next_version();
        stamp(&mut object, &birth.uid, &birth.time, 1, version);
        return planned.put(key.clone(), Record { origin, overlay: Overlay::default(), object });
    };
    let mut overlay = before.overlay.clone();
    if before.file().is_none() {
        // What Tombolo said of its own object, it now says of the user's.
        overlay.labels = texts(&before.object, "labels");
        overlay.annotations = texts(&before.object, "annotations");
        overlay.status_written |= before.object.get("status").is_some();
    }
    for (field, added) in [("labels", &mut overlay.labels), ("annotations", &mut overlay.annotations)] {
        let mut merged = texts(&object, field);
        // The user's word stands.
        added.retain(|name, _| !merged.contains_key(name));
        merged.extend(added.clone());
        set_texts(&mut object, field, &merged);
    }
    if overlay.status_written {
        set_status(&mut object, before.object.get("status").cloned());
    }
    set_endpoint_conditions(&mut object, &overlay.endpoint_conditions);
    let present = endpoint_conditions(&object);
    overlay.endpoint_conditions.retain(|name, _| present.contains_key(name));
    // The origin may be all that changed: that is kept, and nobody is told.
    replace(planned, key.clone(), &before, Record { origin, overlay, object }, false);
}

/// No file defines the object any more.
pub(crate) fn undeclare(planned: &mut Planned<'_>, key: &Key) {
    if planned.get(key).is_some_and(|record| record.file().is_some()) {
        planned.remove(key);
    }
}

/// A Namespace that nobody declared has an object.
pub(crate) fn imply_namespace(planned: &mut Planned<'_>, key: Key) {
    let name = &key.object.name;
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": name, "labels": { "kubernetes.io/metadata.name": name } },
    });
    // A namespace that was declared until now stays the same one.
    let before = planned.before(&key);
    let version = planned.next_version();
    match before {
        Some(before) => {
            let generation = generation(&before.object);
            stamp(&mut object, before.uid(), metadata_text(&before.object, "creationTimestamp"), generation, version);
        }
        None => {
            let Birth { uid, time } = planned.birth();
            stamp(&mut object, &uid, &time, 1, version);
        }
    }
    planned.put(key, Record { origin: Origin::Implied, overlay: Overlay::default(), object });
}

/// The record a write names by uid and resourceVersion.
fn expected(planned: &Planned<'_>, key: &Key, object: &Value) -> Result<std::sync::Arc<Record>, Error> {
    let record = planned.get(key).ok_or_else(|| Error::NotFound(key.to_string()))?;
    for field in ["uid", "resourceVersion"] {
        let (named, current) = (metadata_text(object, field), metadata_text(&record.object, field));
        if named != current {
            let detail = if named.is_empty() {
                format!("the write names no {field}: write what was read")
            } else {
                format!("its {field} is {current}, not {named}")
            };
            return Err(Error::Conflict { object: key.to_string(), detail });
        }
    }
    Ok(std::sync::Arc::clone(record))
}

/// Refuses an object whose owners are all gone: it would be collected at once.
fn orphan(planned: &Planned<'_>, key: &Key, object: &Value) -> Result<(), Error> {
    let owners = owners(object);
    if owners.is_empty() || owners.iter().any(|owner| planned.is_alive(owner)) {
        return Ok(());
    }
    Err(Error::Conflict { object: key.to_string(), detail: "its owner is gone".into() })
}

/// What an update to a user's object may change: labels and annotations that the user does not set.
fn overlaid(key: &Key, file: &str, before: &Record, wanted: Value) -> Result<(Value, Overlay), Error> {
    let refuse =
        |what: &str| Err(Error::Forbidden(format!("the manifest {file} owns {what} of {key}: change it there")));
    if !same_spec(&wanted, &before.object) {
        return refuse("the spec");
    }
    if owners(&wanted) != before.owners() {
        return refuse("the owners");
    }
    let mut overlay = before.overlay.clone();
    let mut object = before.object.clone();
    for (field, added) in [("labels", &mut overlay.labels), ("annotations", &mut overlay.annotations)] {
        let mut wanted = texts(&wanted, field);
        let declared = before.declared(field, added);
        if let Some(name) = declared.iter().find(|(name, value)| wanted.get(*name) != Some(value)).map(|(name, _)| name)
        {
            return refuse(&format!("{} '{name}'", field.trim_end_matches('s')));
        }
        set_texts(&mut object, field, &wanted);
        wanted.retain(|name, _| !declared.contains_key(name));
        *added = wanted;
    }
    Ok((object, overlay))
}

/// Puts `after` in the place of `before`, with a new version when anybody can see the difference.
///
/// The generation counts what is asked for, so a `measured` difference leaves it alone.
fn replace(planned: &mut Planned<'_>, key: Key, before: &Record, mut after: Record, measured: bool) -> Value {
    let bump = i64::from(!measured && !same_spec(&before.object, &after.object));
    let created = metadata_text(&before.object, "creationTimestamp").to_owned();
    let version = before.resource_version().parse().unwrap_or(0);
    stamp(&mut after.object, before.uid(), &created, generation(&before.object) + bump, version);
    if after.object != before.object {
        let version = planned.next_version();
        stamp(&mut after.object, before.uid(), &created, generation(&before.object) + bump, version);
    }
    let object = after.object.clone();
    if after != *before {
        planned.put(key, after);
    }
    object
}

fn generation(object: &Value) -> i64 {
    object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(1)
}

fn stamp(object: &mut Value, uid: &str, created: &str, generation: i64, version: u64) {
    let Some(metadata) = metadata_of(object) else { return };
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), uid.into());
    metadata.insert("creationTimestamp".into(), created.into());
    metadata.insert("generation".into(), generation.into());
    metadata.insert("resourceVersion".into(), version.to_string().into());
}
