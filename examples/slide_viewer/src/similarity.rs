//! Colours tiles by the similarity of their states to one tile's, on the device: a compute shader of this application's reads
//! the encoder's tensors and writes a texture, which the window draws. Nothing of it comes to the host.

use dilated_attention::pool::{PARAMS_USAGE, STORAGE_USAGE};
use dilated_attention::{Context, DType, Lease, Result, Tensor, TensorPart, wgpu};

use crate::colour;
use crate::grid::{Layout, NONE};

/// The shader, its texture, and where tiles are in it.
#[derive(Debug)]
pub struct Similarity {
    context: Context,
    compare: wgpu::ComputePipeline,
    measure: wgpu::ComputePipeline,
    paint: wgpu::ComputePipeline,
    tile_of_cell: Lease,
    picture: wgpu::TextureView,
    size: [u32; 2],
}

/// Rows of a state that one binding covers.
struct Window {
    first: usize,
    count: u32,
    offset: u64,
    bytes: u64,
}

impl Similarity {
    /// For a slide of that layout.
    pub fn new(context: &Context, layout: &Layout) -> Result<Self> {
        let device = context.device();
        let size = [layout.columns, layout.rows].map(|cells| cells as u32);
        let picture = device.create_texture(&wgpu::TextureDescriptor {
            label: Some("similarity"),
            size: wgpu::Extent3d {
                width: size[0],
                height: size[1],
                depth_or_array_layers: 1,
            },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba8Unorm,
            usage: wgpu::TextureUsages::STORAGE_BINDING | wgpu::TextureUsages::TEXTURE_BINDING,
            view_formats: &[],
        });
        let wgsl = format!(
            "const NONE = {NONE}u;\nconst STEPS = {}u;\nvar<private> ramp: array<vec3f, {}> = array({});\n{}",
            colour::RAMP.len() - 1,
            colour::RAMP.len(),
            colour::RAMP
                .map(|[r, g, b]| format!("vec3f({r:?}, {g:?}, {b:?})"))
                .join(", "),
            include_str!("similarity.wgsl"),
        );
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("similarity"),
            source: wgpu::ShaderSource::Wgsl(wgsl.into()),
        });
        let cells = &layout.tile_of_cell;
        let tile_of_cell =
            context
                .pool()
                .acquire("tile of each cell", 4 * cells.len() as u64, STORAGE_USAGE)?;
        let mut work = context.pool().encoder(context.queue(), "layout")?;
        work.upload(&tile_of_cell, 0, cells)?;
        work.submit()?;
        Ok(Self {
            compare: pipeline(device, &module, "compare"),
            measure: pipeline(device, &module, "measure"),
            paint: pipeline(device, &module, "paint"),
            context: context.clone(),
            tile_of_cell,
            picture: picture.create_view(&Default::default()),
            size,
        })
    }

    /// The texture: a pixel for each cell, in the window's colours.
    pub fn picture(&self) -> &wgpu::TextureView {
        &self.picture
    }

    /// Submits the work that colours the texture by the cosine of each tile's state to that of `tile`. `states` are those of one
    /// slide: (1, tokens, width), the first token being CLS.
    pub fn colour(&self, states: &Tensor, tile: u32) -> Result<()> {
        let [_, tokens, width] = *states.shape() else {
            return Ok(());
        };
        let is_half = states.dtype() == DType::F16;
        let row_bytes = width as u64 * states.dtype().bytes();
        let (pool, token) = (self.context.pool(), tile as usize + 1);
        let one = pool.acquire("one state", row_bytes, STORAGE_USAGE)?;
        let cosines = pool.acquire("cosines", 4 * tokens as u64, STORAGE_USAGE)?;
        let scale = pool.acquire("scale", 8, STORAGE_USAGE)?;
        let mut work = pool.encoder(self.context.queue(), "similarity")?;
        for lease in [&one, &cosines, &scale, &self.tile_of_cell] {
            work.keep(lease);
        }
        for part in states.parts().filter(|part| part.rows.contains(&token)) {
            let offset = part.bytes.start + (token - part.rows.start) as u64 * row_bytes;
            work.encoder()
                .copy_buffer_to_buffer(part.buffer, offset, one.buffer(), 0, row_bytes);
        }
        for part in states.parts() {
            for window in self.windows(&part, row_bytes) {
                let rows = pool.acquire("rows", 16, PARAMS_USAGE)?;
                let params = [
                    window.first as u32,
                    (row_bytes / 4) as u32,
                    u32::from(is_half),
                    0,
                ];
                work.upload(&rows, 0, &params)?;
                let states = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: part.buffer,
                    offset: window.offset,
                    size: wgpu::BufferSize::new(window.bytes),
                });
                let bindings = [
                    (0, rows.binding()),
                    (1, states),
                    (2, one.binding()),
                    (3, cosines.binding()),
                ];
                self.record(work.encoder(), &self.compare, &bindings, [window.count, 1]);
            }
        }
        let bindings = [(4, cosines.binding()), (5, scale.binding())];
        self.record(work.encoder(), &self.measure, &bindings, [1, 1]);
        let bindings = [
            (4, cosines.binding()),
            (6, scale.binding()),
            (7, self.tile_of_cell.binding()),
            (8, wgpu::BindingResource::TextureView(&self.picture)),
        ];
        let workgroups = self.size.map(|cells| cells.div_ceil(8));
        self.record(work.encoder(), &self.paint, &bindings, workgroups);
        // The caller keeps the states until here.
        work.submit().map(drop)
    }

    /// The part in windows that one binding and one dispatch can cover.
    fn windows(&self, part: &TensorPart<'_>, row_bytes: u64) -> Vec<Window> {
        let limits = self.context.device().limits();
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment);
        // After so many rows an offset is aligned again.
        let step = (1..alignment)
            .find(|rows| (rows * row_bytes).is_multiple_of(alignment))
            .unwrap_or(alignment);
        let fitting = limits.max_storage_buffer_binding_size / row_bytes.max(1);
        let most = fitting.min(limits.max_compute_workgroups_per_dimension.into());
        let most = (most / step * step).max(step) as usize;
        let windows = part.rows.clone().step_by(most).map(|first| {
            let count = most.min(part.rows.end - first);
            Window {
                first,
                count: count as u32,
                offset: part.bytes.start + (first - part.rows.start) as u64 * row_bytes,
                bytes: count as u64 * row_bytes,
            }
        });
        windows.collect()
    }

    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        pipeline: &wgpu::ComputePipeline,
        bindings: &[(u32, wgpu::BindingResource<'_>)],
        [x, y]: [u32; 2],
    ) {
        let entries = bindings
            .iter()
            .map(|(binding, resource)| wgpu::BindGroupEntry {
                binding: *binding,
                resource: resource.clone(),
            });
        let entries: Vec<_> = entries.collect();
        let group = self
            .context
            .device()
            .create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("similarity"),
                layout: &pipeline.get_bind_group_layout(0),
                entries: &entries,
            });
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(x, y, 1);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the pipeline belongs to this application"
)]
fn pipeline(
    device: &wgpu::Device,
    module: &wgpu::ShaderModule,
    entry_point: &str,
) -> wgpu::ComputePipeline {
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(entry_point),
        layout: None,
        module,
        entry_point: Some(entry_point),
        compilation_options: Default::default(),
        cache: None,
    })
}
