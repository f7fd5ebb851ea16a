//! The slide as a picture: a pixel of a texture for each cell, however many tiles there are.

use std::sync::Arc;

use dilated_attention::models::gigapath::Cell;
use eframe::egui::{
    self, Color32, ColorImage, Rect, Sense, Stroke, TextureFilter, TextureHandle, TextureId,
    TextureOptions, Ui, Vec2, pos2, vec2,
};

use crate::colour;

/// Cells without a tile.
pub const NONE: u32 = u32::MAX;

/// Tiles that have no number yet.
const UNKNOWN: Color32 = Color32::from_rgb(0x5b, 0x62, 0x6b);

/// Where tiles are, within the box around them.
#[derive(Debug)]
pub struct Layout {
    /// Cells in a row of the box.
    pub columns: usize,
    /// Rows of the box.
    pub rows: usize,
    /// The tile of each cell, row by row, or [`NONE`]. Of tiles that share a cell it is the last.
    pub tile_of_cell: Vec<u32>,
    /// The cell of each tile.
    pub cell_of_tile: Vec<[u32; 2]>,
}

impl Layout {
    /// Of tiles in these cells of the whole slide.
    pub fn new(cells: &[Cell]) -> Self {
        let bounds = |of: fn(&Cell) -> u32| {
            let first = cells.iter().map(of).min().unwrap_or(0);
            let last = cells.iter().map(of).max().unwrap_or(0);
            (first, (last - first) as usize + 1)
        };
        let ((left, columns), (top, rows)) = (bounds(|cell| cell.x), bounds(|cell| cell.y));
        let within = |cell: &Cell| [cell.x - left, cell.y - top];
        let cell_of_tile: Vec<[u32; 2]> = cells.iter().map(within).collect();
        let mut tile_of_cell = vec![NONE; columns * rows];
        for (tile, [x, y]) in (0..).zip(&cell_of_tile) {
            tile_of_cell[*y as usize * columns + *x as usize] = tile;
        }
        Self {
            columns,
            rows,
            tile_of_cell,
            cell_of_tile,
        }
    }
}

/// The colours that are shown.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Colours {
    /// Those of [`Grid::colour`].
    Host,
    /// Those that the device has drawn.
    Device,
}

/// The picture, and which part of it is in sight.
pub struct Grid {
    layout: Arc<Layout>,
    texture: TextureHandle,
    /// The device's picture of the same size.
    drawn: TextureId,
    colours: Colours,
    /// 1 where all of the slide fits.
    zoom: f32,
    /// From the middle of the view to that of the slide, in points.
    offset: Vec2,
}

impl Grid {
    /// A slide without colours. `drawn` is the picture that the device draws.
    pub fn new(ctx: &egui::Context, layout: Arc<Layout>, drawn: TextureId) -> Self {
        let image = image(&layout, |_| UNKNOWN);
        Self {
            texture: ctx.load_texture("slide", image, SHARP),
            layout,
            drawn,
            colours: Colours::Host,
            zoom: 1.0,
            offset: Vec2::ZERO,
        }
    }

    /// The tile nearest to the middle of all.
    pub fn middle_tile(&self) -> Option<u32> {
        let [columns, rows] = self.size();
        let from_middle = |[x, y]: &[u32; 2]| {
            let off = |at: u32, size: usize| (2 * i64::from(at) + 1 - size as i64).pow(2);
            off(*x, columns) + off(*y, rows)
        };
        let tiles = (0..).zip(&self.layout.cell_of_tile);
        let nearest = tiles.min_by_key(|(_, cell)| from_middle(cell));
        nearest.map(|(tile, _)| tile)
    }

    /// Columns and rows of cells.
    pub fn size(&self) -> [usize; 2] {
        self.texture.size()
    }

    /// Colours each tile by its number; returns the ends of the scale.
    pub fn colour(&mut self, values: &[f32]) -> [f32; 2] {
        let [low, high] = colour::scale(values);
        let range = (high - low).max(f32::MIN_POSITIVE);
        let image = image(&self.layout, |tile| match values.get(tile as usize) {
            Some(value) => colour::ramp((value - low) / range),
            None => UNKNOWN,
        });
        self.texture.set(image, SHARP);
        self.colours = Colours::Host;
        [low, high]
    }

    /// Shows what the device has drawn.
    pub fn show_drawn(&mut self) {
        self.colours = Colours::Device;
    }

    /// Draws the slide over the rest of `ui`: dragged it moves, the wheel zooms, a double click shows all of it again. Returns
    /// where it is and a tile that was clicked.
    pub fn show(&mut self, ui: &mut Ui, selected: Option<u32>) -> (Rect, Option<u32>) {
        let (response, painter) = ui.allocate_painter(ui.available_size(), Sense::click_and_drag());
        let view = response.rect;
        let size = self.texture.size_vec2();
        let fit = (view.width() / size.x).min(view.height() / size.y) * 0.97;
        if response.dragged() {
            self.offset += response.drag_delta();
        }
        if let Some(pointer) = response.hover_pos() {
            let scrolled = ui.input(|input| input.smooth_scroll_delta().y);
            let zoom = (self.zoom * (scrolled / 200.0).exp()).clamp(1.0, 64.0);
            // What is under the pointer stays there.
            let from_middle = pointer - view.center() - self.offset;
            self.offset -= from_middle * (zoom / self.zoom - 1.0);
            self.zoom = zoom;
        }
        if response.double_clicked() || self.zoom == 1.0 {
            (self.zoom, self.offset) = (1.0, Vec2::ZERO);
        }
        let cell = fit * self.zoom;
        let picture = Rect::from_center_size(view.center() + self.offset, size * cell);
        let whole = Rect::from_min_max(pos2(0.0, 0.0), pos2(1.0, 1.0));
        let texture = match self.colours {
            Colours::Host => self.texture.id(),
            Colours::Device => self.drawn,
        };
        painter.image(texture, picture, whole, Color32::WHITE);
        let cell_of_tile = &self.layout.cell_of_tile;
        if let Some([x, y]) = selected.and_then(|tile| cell_of_tile.get(tile as usize)) {
            let corner = picture.min + vec2(*x as f32, *y as f32) * cell;
            let outline = Rect::from_min_size(corner, Vec2::splat(cell)).expand(1.5);
            for (width, colour) in [(4.0, Color32::BLACK), (2.0, Color32::WHITE)] {
                let stroke = Stroke::new(width, colour);
                painter.rect_stroke(outline, 1.0, stroke, egui::StrokeKind::Middle);
            }
        }
        let clicked = response
            .interact_pointer_pos()
            .filter(|_| response.clicked());
        let tile = clicked.and_then(|at| {
            let at = (at - picture.min) / cell;
            let columns = self.layout.columns;
            let inside = at.x >= 0.0 && at.y >= 0.0 && (at.x as usize) < columns;
            let place = at.y as usize * columns + at.x as usize;
            let tile = *self.layout.tile_of_cell.get(place).filter(|_| inside)?;
            (tile != NONE).then_some(tile)
        });
        (picture, tile)
    }
}

/// Tiles have sharp edges, however large they are.
const SHARP: TextureOptions = TextureOptions {
    magnification: TextureFilter::Nearest,
    ..TextureOptions::LINEAR
};

fn image(layout: &Layout, colour: impl Fn(u32) -> Color32) -> ColorImage {
    let pixels = layout.tile_of_cell.iter().map(|&tile| match tile {
        NONE => Color32::TRANSPARENT,
        tile => colour(tile),
    });
    ColorImage::new([layout.columns, layout.rows], pixels.collect())
}
