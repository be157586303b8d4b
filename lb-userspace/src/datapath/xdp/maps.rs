//! Typed access to the loaded object's maps, by name. Knows their types, not their meaning.

use std::io;
use std::os::fd::AsFd as _;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::{Ebpf, Pod};
use lb_common::service::{ServiceKey, VirtualServerEntry};

use super::mapped::Mapped;
use crate::datapath::DatapathError;

/// A loaded object with its maps.
pub struct Maps {
    ebpf: Ebpf,
    cpus: usize,
}

impl Maps {
    /// The maps of `ebpf`.
    pub fn new(ebpf: Ebpf) -> Self {
        // Where the count cannot be read, per-CPU values are refused by the kernel with their own error.
        let cpus = aya::util::nr_cpus().unwrap_or(1);
        Self { ebpf, cpus }
    }

    /// The object itself.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// An element of an array.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel, like everything below.
    pub fn get<V: Pod>(&self, map: &'static str, index: u32) -> Result<V, DatapathError> {
        let array = Array::<&MapData, V>::try_from(self.map(map)?).map_err(failed("open", map))?;
        array.get(&index, 0).map_err(failed("read", map))
    }

    /// Sets an element of an array.
    ///
    /// # Errors
    ///
    /// As [`Maps::get`].
    pub fn set<V: Pod>(&mut self, map: &'static str, index: u32, value: V) -> Result<(), DatapathError> {
        let mut array = Array::<&mut MapData, V>::try_from(self.map_mut(map)?).map_err(failed("open", map))?;
        array.set(index, value, 0).map_err(failed("write", map))
    }

    /// An element of a per-CPU array, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// As [`Maps::get`].
    pub fn sum<V>(&self, map: &'static str, index: u32) -> Result<V, DatapathError>
    where
        V: Pod + Default + std::ops::AddAssign,
    {
        let array = PerCpuArray::<&MapData, V>::try_from(self.map(map)?).map_err(failed("open", map))?;
        let values = array.get(&index, 0).map_err(failed("read", map))?;
        let mut total = V::default();
        values.iter().for_each(|value| total += *value);
        Ok(total)
    }

    /// Sets an element of a per-CPU array on every CPU.
    ///
    /// # Errors
    ///
    /// As [`Maps::get`].
    pub fn set_per_cpu<V: Pod>(&mut self, map: &'static str, index: u32, value: V) -> Result<(), DatapathError> {
        let values = PerCpuValues::try_from(vec![value; self.cpus])
            .map_err(|source| failed("write", map)(MapError::IoError(source)))?;
        let mut array = PerCpuArray::<&mut MapData, V>::try_from(self.map_mut(map)?).map_err(failed("open", map))?;
        array.set(index, values, 0).map_err(failed("write", map))
    }

    /// Everything in `virtual_servers`.
    ///
    /// # Errors
    ///
    /// As [`Maps::get`].
    pub fn virtual_servers(&self) -> Result<Vec<(ServiceKey, VirtualServerEntry)>, DatapathError> {
        let map = HashMap::<&MapData, _, _>::try_from(self.map(VIRTUAL_SERVERS)?);
        let map = map.map_err(failed("open", VIRTUAL_SERVERS))?;
        map.iter().collect::<Result<_, _>>().map_err(failed("read", VIRTUAL_SERVERS))
    }

    /// Everything in `virtual_servers`, octet by octet: it may have been written by another version.
    ///
    /// # Errors
    ///
    /// As [`Maps::get`].
    pub fn virtual_server_octets(&self) -> Result<Vec<(KeyOctets, EntryOctets)>, DatapathError> {
        let map = HashMap::<&MapData, _, _>::try_from(self.map(VIRTUAL_SERVERS)?);
        let map = map.map_err(failed("open", VIRTUAL_SERVERS))?;
        map.iter().collect::<Result<_, _>>().map_err(failed("read", VIRTUAL_SERVERS))
    }

    /// An array as shared memory.
    ///
    /// # Errors
    ///
    /// As [`Maps::get`].
    pub fn mapped<V: Pod>(&self, map: &'static str) -> Result<Mapped<V>, DatapathError> {
        let found = self.map(map)?;
        let length = Array::<&MapData, V>::try_from(found).map_err(failed("open", map))?.len();
        match found {
            Map::Array(data) => Mapped::new(map, data.fd().as_fd(), length),
            // Refused two lines above.
            other => Err(failed("open", map)(MapError::InvalidName { name: format!("{other:?}") })),
        }
    }

    /// Publishes a virtual server, or replaces what is published.
    ///
    /// # Errors
    ///
    /// As [`Maps::get`].
    pub fn put_virtual_server(&mut self, key: ServiceKey, entry: VirtualServerEntry) -> Result<(), DatapathError> {
        self.insert(VIRTUAL_SERVERS, key, entry)
    }

    /// Withdraws a virtual server; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// As [`Maps::get`].
    pub fn remove_virtual_server(&mut self, key: ServiceKey) -> Result<(), DatapathError> {
        self.remove::<ServiceKey, VirtualServerEntry>(VIRTUAL_SERVERS, &key)
    }

    /// The keys of a hash map.
    ///
    /// # Errors
    ///
    /// As [`Maps::get`].
    pub fn keys<K: Pod, V: Pod>(&self, map: &'static str) -> Result<Vec<K>, DatapathError> {
        let found = HashMap::<&MapData, K, V>::try_from(self.map(map)?).map_err(failed("open", map))?;
        found.keys().collect::<Result<_, _>>().map_err(failed("read", map))
    }

    /// Sets an element of a hash map.
    ///
    /// # Errors
    ///
    /// As [`Maps::get`].
    pub fn insert<K: Pod, V: Pod>(&mut self, map: &'static str, key: K, value: V) -> Result<(), DatapathError> {
        let mut found = HashMap::<&mut MapData, K, V>::try_from(self.map_mut(map)?).map_err(failed("open", map))?;
        found.insert(key, value, 0).map_err(failed("write", map))
    }

    /// Removes an element of a hash map; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// As [`Maps::get`].
    pub fn remove<K: Pod, V: Pod>(&mut self, map: &'static str, key: &K) -> Result<(), DatapathError> {
        let mut found = HashMap::<&mut MapData, K, V>::try_from(self.map_mut(map)?).map_err(failed("open", map))?;
        match found.remove(key) {
            Ok(()) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(failed("write", map)(source)),
        }
    }

    fn map(&self, name: &'static str) -> Result<&Map, DatapathError> {
        self.ebpf.map(name).ok_or_else(|| failed("find", name)(MapError::InvalidName { name: name.to_owned() }))
    }

    fn map_mut(&mut self, name: &'static str) -> Result<&mut Map, DatapathError> {
        self.ebpf.map_mut(name).ok_or_else(|| failed("find", name)(MapError::InvalidName { name: name.to_owned() }))
    }
}

/// A key of `virtual_servers`.
pub type KeyOctets = [u8; size_of::<ServiceKey>()];
/// A value of `virtual_servers`.
pub type EntryOctets = [u8; size_of::<VirtualServerEntry>()];

const VIRTUAL_SERVERS: &str = "virtual_servers";

fn failed(action: &'static str, map: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map { action, map, source }
}
