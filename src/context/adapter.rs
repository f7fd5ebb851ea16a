//! The choice of the adapter for a context's own device.

use crate::error::{Error, Result};

/// Which adapter to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AdapterChoice {
    /// If the environment variable `WGPU_ADAPTER_NAME` is set, the first adapter whose name contains its value. Otherwise the one
    /// that wgpu prefers under `WGPU_POWER_PREF` (high performance if unset). `WGPU_BACKEND` limits the backends, for all choices.
    #[default]
    Environment,
    /// The adapter that wgpu prefers under this power preference.
    Power(wgpu::PowerPreference),
    /// The first adapter whose name contains this text; upper and lower case are the same.
    Named(String),
    /// A software adapter.
    Software,
    /// For rank number n of those on one machine: of the adapters of the kind, backend and name that `Environment` chooses number n,
    /// counted round. So ranks take one GPU each where there are several, and share one where there is one.
    OfRank(usize),
}

pub(super) fn new_instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

pub(super) async fn choose_adapter(
    instance: &wgpu::Instance,
    choice: &AdapterChoice,
) -> Result<wgpu::Adapter> {
    let by_name = |name: String| async move {
        let wanted = name.to_lowercase();
        let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
        let found = names(&adapters);
        adapters
            .into_iter()
            .find(|adapter| adapter.get_info().name.to_lowercase().contains(&wanted))
            .ok_or_else(|| Error::NoAdapter {
                reason: format!("none has '{name}' in its name"),
                found,
            })
    };
    if let AdapterChoice::OfRank(rank) = choice {
        let first = Box::pin(choose_adapter(instance, &AdapterChoice::Environment)).await?;
        let name = std::env::var("WGPU_ADAPTER_NAME").unwrap_or_default();
        let kind = |adapter: &wgpu::Adapter| {
            let info = adapter.get_info();
            let is_named = info.name.to_lowercase().contains(&name.to_lowercase());
            (info.backend, info.device_type, is_named)
        };
        let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
        let mut alike: Vec<_> = adapters
            .into_iter()
            .filter(|adapter| kind(adapter) == kind(&first))
            .collect();
        // In a browser adapters cannot be listed.
        return match alike.len() {
            0 => Ok(first),
            count => Ok(alike.swap_remove(rank % count)),
        };
    }
    let (power_preference, force_fallback_adapter) = match choice {
        AdapterChoice::Named(name) => return by_name(name.clone()).await,
        AdapterChoice::Environment => {
            if let Ok(name) = std::env::var("WGPU_ADAPTER_NAME") {
                return by_name(name).await;
            }
            let power = wgpu::PowerPreference::from_env();
            (
                power.unwrap_or(wgpu::PowerPreference::HighPerformance),
                false,
            )
        }
        AdapterChoice::Power(power) => (*power, false),
        // A rank's is chosen above.
        AdapterChoice::Software | AdapterChoice::OfRank(_) => (wgpu::PowerPreference::None, true),
    };
    let options = wgpu::RequestAdapterOptions {
        power_preference,
        force_fallback_adapter,
        ..Default::default()
    };
    match instance.request_adapter(&options).await {
        Ok(adapter) => Ok(adapter),
        Err(error) => Err(Error::NoAdapter {
            reason: error.to_string(),
            found: names(&instance.enumerate_adapters(wgpu::Backends::all()).await),
        }),
    }
}

fn names(adapters: &[wgpu::Adapter]) -> String {
    if adapters.is_empty() {
        return "none at all".to_owned();
    }
    let names: Vec<String> = adapters
        .iter()
        .map(|adapter| format!("'{}'", adapter.get_info().name))
        .collect();
    names.join(", ")
}
