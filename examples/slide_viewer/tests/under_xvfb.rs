//! Drives the viewer's window under Xvfb: pointer and clicks through the X server, what it shows by screenshots, what it does by
//! the lines that `--trace` prints. What the device draws is compared with what the host computes from exported states.
#![cfg(target_os = "linux")]

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use slide_files::Tiles;
use x11rb::connection::Connection;
use x11rb::protocol::xproto::{
    BUTTON_PRESS_EVENT, BUTTON_RELEASE_EVENT, ClientMessageEvent, ConnectionExt, EventMask,
    ImageFormat, MOTION_NOTIFY_EVENT, Window,
};
use x11rb::protocol::xtest::ConnectionExt as _;
use x11rb::rust_connection::RustConnection;

/// For anything to happen; a busy machine compiles kernels for long.
const PATIENCE: Duration = Duration::from_secs(180);

/// Ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An X server without a screen, and the only client beside the viewer.
struct Display {
    name: String,
    connection: RustConnection,
    root: Window,
    _server: Process,
}

impl Display {
    fn start() -> Self {
        // Writes the number of the free display that it found.
        let server = Command::new("Xvfb")
            .args([
                "-displayfd",
                "1",
                "-screen",
                "0",
                "1280x800x24",
                "-nolisten",
                "tcp",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut server = Process(server.unwrap_or_else(|error| {
            panic!("Xvfb does not start: {error}. Debian, Ubuntu: apt-get install xvfb")
        }));
        let mut number = String::new();
        let stdout = server.0.stdout.take().expect("is piped");
        BufReader::new(stdout)
            .read_line(&mut number)
            .expect("reads");
        let name = format!(":{}", number.trim());
        let (connection, screen) = x11rb::connect(Some(&name)).expect("Xvfb answers");
        let root = connection.setup().roots[screen].root;
        Self {
            name,
            connection,
            root,
            _server: server,
        }
    }

    fn input(&self, kind: u8, button: u8, [x, y]: [i32; 2]) {
        self.connection
            .xtest_fake_input(kind, button, 0, self.root, x as i16, y as i16, 0)
            .expect("sends")
            .check()
            .expect("the server has XTEST");
        // Each input in a frame of its own, as from a slow hand.
        std::thread::sleep(Duration::from_millis(150));
    }

    fn click(&self, at: [i32; 2]) {
        self.input(MOTION_NOTIFY_EVENT, 0, at);
        self.input(BUTTON_PRESS_EVENT, 1, at);
        self.input(BUTTON_RELEASE_EVENT, 1, at);
    }

    fn screenshot(
        &self,
        Widget {
            left,
            top,
            width,
            height,
        }: Widget,
    ) -> Vec<[u8; 3]> {
        let (x, y, w, h) = (left as i16, top as i16, width as u16, height as u16);
        let image = self
            .connection
            .get_image(ImageFormat::Z_PIXMAP, self.root, x, y, w, h, !0)
            .expect("sends")
            .reply()
            .expect("the widget is on the screen");
        let (pixels, _) = image.data.as_chunks::<4>();
        pixels
            .iter()
            .map(|&[blue, green, red, _]| [red, green, blue])
            .collect()
    }

    /// The first screenshot that is as `wanted`.
    fn until(&self, at: Widget, what: &str, wanted: impl Fn(&[[u8; 3]]) -> bool) -> Vec<[u8; 3]> {
        let begin = Instant::now();
        loop {
            let picture = self.screenshot(at);
            if wanted(&picture) {
                return picture;
            }
            assert!(begin.elapsed() < PATIENCE, "never seen: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks the viewer's window to close, as a window manager does.
    fn close(&self, title: &str) {
        let connection = &self.connection;
        let atom = |name: &str| {
            let cookie = connection
                .intern_atom(false, name.as_bytes())
                .expect("sends");
            cookie.reply().expect("answers").atom
        };
        let [protocols, delete, name, any] = [
            "WM_PROTOCOLS",
            "WM_DELETE_WINDOW",
            "_NET_WM_NAME",
            "UTF8_STRING",
        ]
        .map(atom);
        let windows = connection
            .query_tree(self.root)
            .expect("sends")
            .reply()
            .expect("answers");
        let named = |window: &&Window| {
            let property = connection.get_property(false, **window, name, any, 0, 99);
            property.expect("sends").reply().expect("answers").value == title.as_bytes()
        };
        let window = *windows
            .children
            .iter()
            .find(named)
            .expect("the window is there");
        let message = ClientMessageEvent::new(32, window, protocols, [delete, 0, 0, 0, 0]);
        let sent = connection.send_event(false, window, EventMask::NO_EVENT, message);
        sent.expect("sends").check().expect("is sent");
    }
}

/// Where a widget is, in pixels.
#[derive(Clone, Copy, Debug)]
struct Widget {
    left: i32,
    top: i32,
    width: i32,
    height: i32,
}

impl Widget {
    /// At parts of its width and height.
    fn at(&self, x: f64, y: f64) -> [i32; 2] {
        let along = |first: i32, size: i32, part: f64| first + (f64::from(size) * part) as i32;
        [
            along(self.left, self.width, x),
            along(self.top, self.height, y),
        ]
    }

    fn middle(&self) -> [i32; 2] {
        self.at(0.5, 0.5)
    }
}

/// The viewer and what it said.
struct Viewer {
    process: Process,
    lines: Receiver<String>,
    widgets: HashMap<String, Widget>,
}

impl Viewer {
    fn start(display: &Display, arguments: &[&str]) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_slide_viewer"))
            .args(arguments)
            .arg("--trace")
            .env("DISPLAY", &display.name)
            .env("DILATED_ATTENTION_CACHE", "off")
            .stdout(Stdio::piped())
            .spawn();
        let mut process = Process(process.expect("starts"));
        let stdout = process.0.stdout.take().expect("is piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let said = BufReader::new(stdout).lines().map_while(Result::ok);
            said.map(|line| sender.send(line)).all(|sent| sent.is_ok())
        });
        Self {
            process,
            lines,
            widgets: HashMap::new(),
        }
    }

    /// Waits for a line that begins with `begin`; returns all up to it.
    fn until(&mut self, begin: &str) -> Vec<String> {
        let start = Instant::now();
        let mut seen = Vec::new();
        loop {
            let left = PATIENCE.saturating_sub(start.elapsed());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|error| {
                panic!(
                    "{error} while waiting for \"{begin}\"; last {:?}",
                    seen.last()
                )
            });
            assert!(!line.starts_with("failed") || begin == "failed", "{line}");
            if let Some(("widget", place)) = line.split_once(' ') {
                let mut words = place.split(' ');
                let name = words.next().unwrap_or_default().to_owned();
                let numbers: Vec<i32> = words.map(|word| word.parse().expect("a number")).collect();
                let [left, top, width, height] = numbers[..] else {
                    panic!("{line}");
                };
                let widget = Widget {
                    left,
                    top,
                    width,
                    height,
                };
                self.widgets.insert(name, widget);
            }
            let found = line.starts_with(begin);
            seen.push(line);
            if found {
                return seen;
            }
        }
    }

    fn widget(&self, name: &str) -> Widget {
        *self
            .widgets
            .get(name)
            .unwrap_or_else(|| panic!("no widget {name}"))
    }

    /// Waits for its end.
    fn ended(mut self) -> std::process::ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.process.0.try_wait().expect("is a child") {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The number behind `name` in a line.
fn number(line: &str, name: &str) -> f64 {
    let mut words = line.split(' ').skip_while(|word| *word != name).skip(1);
    let value = words.next().and_then(|word| word.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {line}"))
}

/// The parts that lines of progress tell.
fn progress(lines: &[String]) -> Vec<f64> {
    let told = lines.iter().filter(|line| line.starts_with("progress"));
    told.filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect()
}

fn num_colours(picture: &[[u8; 3]]) -> usize {
    picture.iter().collect::<HashSet<_>>().len()
}

/// Part of the pixels that differ clearly.
fn changed(a: &[[u8; 3]], b: &[[u8; 3]]) -> f64 {
    let differ = |(a, b): &(&[u8; 3], &[u8; 3])| a.iter().zip(*b).any(|(a, b)| a.abs_diff(*b) > 12);
    a.iter().zip(b).filter(differ).count() as f64 / a.len() as f64
}

/// The tile that a line "painted similarity LAYER TILE" names.
fn painted_tile(lines: &[String]) -> usize {
    let painted = lines.last().and_then(|line| line.rsplit(' ').next());
    painted.and_then(|tile| tile.parse().ok()).expect("a tile")
}

/// Each tile's cell within the box around all, and the colour that it should have: by the cosine of its state to that of `one`, on a
/// scale of two standard deviations around the mean.
fn similarity_colours(tiles: &Tiles, one: usize) -> Vec<([f64; 2], [f64; 3])> {
    const RAMP: [[f64; 3]; 6] = [
        [60.0, 42.0, 120.0],
        [66.0, 76.0, 160.0],
        [46.0, 118.0, 168.0],
        [44.0, 166.0, 140.0],
        [158.0, 206.0, 96.0],
        [252.0, 240.0, 160.0],
    ];
    let width = tiles.features.len() / tiles.coords.len();
    let rows: Vec<&[f32]> = tiles.features.chunks(width).collect();
    let product = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    let length = |row: &[f32]| product(row, row).sqrt();
    let cosine = |row: &&[f32]| product(row, rows[one]) / length(row) / length(rows[one]);
    let cosines: Vec<f64> = rows.iter().map(cosine).collect();
    let count = cosines.len() as f64;
    let mean = cosines.iter().sum::<f64>() / count;
    let variance = cosines.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    let low = mean - 2.0 * variance.sqrt();
    let colour = |cosine: &f64| {
        let part = ((cosine - low) / (4.0 * variance.sqrt())).clamp(0.0, 1.0);
        let first = ((part * 5.0) as usize).min(4);
        let between = part * 5.0 - first as f64;
        [0, 1, 2].map(|i| RAMP[first][i] * (1.0 - between) + RAMP[first + 1][i] * between)
    };
    let corner = [0, 1].map(|axis| {
        let along = tiles.coords.iter().map(|coords| coords[axis]);
        along.fold(f32::INFINITY, f32::min)
    });
    let cell = |coords: &[f32; 2]| [0, 1].map(|i| f64::from(coords[i] - corner[i]) / 256.0);
    tiles
        .coords
        .iter()
        .map(cell)
        .zip(cosines.iter().map(colour))
        .collect()
}

/// Largest difference of a channel between the picture of the slide and those colours, in the middles of cells; around tile `one`
/// its frame is drawn.
fn colour_error(
    picture: &[[u8; 3]],
    slide: Widget,
    columns: f64,
    colours: &[([f64; 2], [f64; 3])],
    one: usize,
) -> f64 {
    let size = f64::from(slide.width) / columns;
    let [one_x, one_y] = colours[one].0;
    let away = colours
        .iter()
        .filter(|([x, y], _)| (x - one_x).abs() > 1.0 || (y - one_y).abs() > 1.0);
    let errors = away.flat_map(|([x, y], expected)| {
        let [column, row] = [x, y].map(|at| ((at + 0.5) * size) as usize);
        let drawn = picture[row * slide.width as usize + column];
        [0, 1, 2].map(|i| (f64::from(drawn[i]) - expected[i]).abs())
    });
    errors.fold(0.0, f64::max)
}

#[test]
fn a_slide_is_encoded_cancelled_looked_at_and_left() {
    let display = Display::start();
    let begin = Instant::now();
    let folder = std::env::temp_dir().join(format!("slide_viewer_{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("is made");
    let export = folder.to_str().expect("is UTF-8");
    let arguments = ["--random", "500", "--layers", "8", "--export", export];
    let mut viewer = Viewer::start(&display, &arguments);
    let ready = viewer.until("ready").pop().expect("ends with it");
    let (leased, columns) = (number(&ready, "leased"), number(&ready, "columns"));
    viewer.until("widget slide");
    println!("ready after {:?}", begin.elapsed());
    let slide = viewer.widget("slide");
    let empty = display.until(slide, "the tiles", |picture| num_colours(picture) > 1);
    assert!(
        num_colours(&empty) < 20,
        "tiles have one colour before a run"
    );

    // Cancelled under way, the run gives everything back.
    display.click(viewer.widget("encode").middle());
    let mut lines = Vec::new();
    while progress(&lines).last().is_none_or(|&part| part < 0.05) {
        lines.extend(viewer.until("progress"));
    }
    display.click(viewer.widget("cancel").middle());
    lines.extend(viewer.until("cancelled"));
    let parts = progress(&lines);
    assert!(parts.is_sorted() && parts.last().is_some_and(|&part| part < 1.0));
    let now = viewer.until("leased").pop().expect("ends with it");
    assert_eq!(number(&now, "leased"), leased);

    // To the end.
    display.click(viewer.widget("encode").middle());
    let lines = viewer.until("encoded");
    let parts = progress(&lines);
    assert!(parts.is_sorted() && parts.last() == Some(&1.0) && parts.len() > 5);
    let now = viewer.until("leased").pop().expect("ends with it");
    // The states of 8 layers stay on the device: 500 tiles and CLS, 768 f32 each.
    let kept = f64::from(8 * 501 * 768 * 4);
    assert_eq!(number(&now, "leased"), leased + kept);
    let frames = viewer.until("frames").pop().expect("ends with it");
    println!("{}; {frames}", lines.last().expect("ends with it"));
    assert!(number(&frames, "frames") > 10.0, "{frames}");
    // By similarity to a tile in the middle, before anything is chosen.
    let middle = painted_tile(&viewer.until("painted similarity 8"));
    let similarity = display.until(slide, "similarity", |picture| {
        num_colours(picture) > 100 && changed(picture, &empty) > 0.2
    });
    // The device drew what the host computes from the same states, which only an export brings there.
    assert_eq!(number(&now, "leased"), leased + kept);
    display.click(viewer.widget("export").middle());
    viewer.until("exported");
    let tiles = Tiles::read_pair(folder.join("layer_8.npy"), folder.join("coords.npy"), 768);
    let tiles = tiles.expect("is read");
    std::fs::remove_dir_all(&folder).expect("is removed");
    assert_eq!(tiles.coords.len(), 500);
    let expect_colours = |display: &Display, one: usize| {
        let colours = similarity_colours(&tiles, one);
        display.until(slide, "the host's colours", |picture| {
            colour_error(picture, slide, columns, &colours, one) <= 4.0
        })
    };
    expect_colours(&display, middle);

    // What CLS attends to is another picture; a click on a tile colours by similarity to it again.
    display.click(viewer.widget("attention").middle());
    viewer.until("painted attention 8");
    let attention = display.until(slide, "attention", |picture| {
        num_colours(picture) > 100 && changed(picture, &similarity) > 0.2
    });
    display.click(slide.at(0.45, 0.55));
    let clicked = painted_tile(&viewer.until("painted similarity 8"));
    let again = expect_colours(&display, clicked);
    assert!(clicked != middle && changed(&again, &attention) > 0.2);
    let others = similarity_colours(&tiles, middle);
    assert!(colour_error(&again, slide, columns, &others, clicked) > 20.0);
    display.click(viewer.widget("attention").middle());
    viewer.until("painted attention 8");
    display.click(viewer.widget("layer").at(0.02, 0.5));
    viewer.until("painted attention 1");
    display.until(slide, "another layer", |picture| {
        num_colours(picture) > 100 && changed(picture, &attention) > 0.1
    });

    // The window answers while the slide is encoded, and may be closed.
    display.click(viewer.widget("encode").middle());
    viewer.until("progress");
    display.click(viewer.widget("similarity").middle());
    let lines = viewer.until("painted similarity 1");
    assert!(
        lines.iter().all(|line| !line.starts_with("encoded")),
        "{lines:?}"
    );
    viewer.until("progress");
    let begin = Instant::now();
    display.close("slide viewer");
    let closed = viewer.until("closed").pop().expect("ends with it");
    assert_eq!(number(&closed, "leased"), 0.0);
    assert!(viewer.ended().success());
    println!("closed within {:?}", begin.elapsed());
}

#[test]
fn what_is_wrong_is_said_in_the_window() {
    let display = Display::start();
    let mut viewer = Viewer::start(&display, &["none.safetensors", "none.npz"]);
    let failed = viewer.until("failed").pop().expect("ends with it");
    assert!(failed.contains("none.npz"), "{failed}");
    let panel = Widget {
        left: 770,
        top: 0,
        width: 330,
        height: 720,
    };
    let red = |[red, green, blue]: &[u8; 3]| *red > 200 && *green < 80 && *blue < 80;
    display.until(panel, "the error, in red", |picture| {
        picture.iter().filter(|pixel| red(pixel)).count() > 20
    });
    display.close("slide viewer");
    viewer.until("closed");
    assert!(viewer.ended().success());
}
