// Gradient of the queries of one branch, on CPUs of the `rows` tier: lanes own rows, keys are staged, as backward_lanes.wgsl says.

#include "backward_lanes.wgsl"

@group(0) @binding(5) var<storage, read> row_stats: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dq: array<Stored4>;

var<private> of_rows: RowStats4; // row statistics of the lane's rows

fn load_a(i: u32) -> vec4<f32> {
    return widen(q[i]);
}

fn load_b(i: u32) -> vec4<f32> {
    return widen(dout[i]);
}

fn old_a(i: u32) -> vec4<f32> {
    return widen(dq[i]);
}

fn old_b(i: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn store(i: u32, of_a: vec4<f32>, of_b: vec4<f32>) {
    dq[i] = narrow(of_a);
}

// Turns s and dp of a row and four keys into ds.
fn weigh_keys(tile: Tile, r: u32, row: u32, keys: vec4<u32>, spoiled: vec4<f32>) {
    if (r < VECTORS_PER_LANE) {
        let seen = seen_keys(tile, row, keys);
        let share = shares(s[r], vec4<f32>(of_rows.top[r]), vec4<f32>(of_rows.norm[r]), seen) + select(vec4<f32>(), spoiled, seen);
        dp[r] = params.scale * score_gradients(share, dp[r], vec4<f32>(of_rows.mean[r]), seen);
    }
}

fn begin_sums(tile: Tile, r: u32, row: u32) {
    if (r < VECTORS_PER_LANE && row < min(tile.row_end, tile.real_rows) && has_flag(FLAG_MERGE)) {
        place = query_index(tile, row);
#for c in range(head_dim // 4)
        load_sums(r, ${c}u);
#endfor
    }
}

fn end_row(tile: Tile, r: u32, row: u32) {
    if (r < VECTORS_PER_LANE && row < min(tile.row_end, tile.real_rows)) {
        place = query_index(tile, row);
#for c in range(head_dim // 4)
        store_sums(r, ${c}u);
#endfor
    }
}

fn weigh_four(tile: Tile, rows: vec4<u32>, first: u32, number: u32) {
    let keys = first + vec4<u32>(0u, 1u, 2u, 3u);
    let spoiled = spoil(number);
    weigh_keys(tile, 0u, rows.x, keys, spoiled);
    weigh_keys(tile, 1u, rows.y, keys, spoiled);
    weigh_keys(tile, 2u, rows.z, keys, spoiled);
    weigh_keys(tile, 3u, rows.w, keys, spoiled);
}

@compute @workgroup_size(THREADS)
fn backward_dq_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let tile = locate_tile(workgroup, SIDE);
    let own = find_own(tile.row_begin, invocation);
    begin_row(tile, 0u, own.x);
    begin_row(tile, 1u, own.y);
    begin_row(tile, 2u, own.z);
    begin_row(tile, 3u, own.w);
    begin_sums(tile, 0u, own.x);
    begin_sums(tile, 1u, own.y);
    begin_sums(tile, 2u, own.z);
    begin_sums(tile, 3u, own.w);
    of_rows = row_stats4(load_row_stats(tile, own.x), load_row_stats(tile, own.y), load_row_stats(tile, own.z), load_row_stats(tile, own.w));
    begin_staging(invocation);
    // Copied to a variable that the loop seems to change: otherwise compilers compute the index anew after every barrier.
    var lane = invocation;
    var number = 0u;
    for (var first = tile.key_begin; first < tile.key_end; first += STAGED) {
        lane = select(lane, 0u, first == 0xffffffffu);
        number++;
        workgroupBarrier();
        stage_keys(tile, first, lane, number);
        workgroupBarrier();
        clear_products();
#for c in range(head_dim // 4)
        add_products_a(${c}u);
#endfor
        // Barriers here keep compilers from holding all loaded values in registers until the sums below use them again.
        workgroupBarrier();
#for c in range(head_dim // 4)
        add_products_b(${c}u);
#endfor
        workgroupBarrier();
        let rows = find_own(tile.row_begin, lane);
        weigh_four(tile, rows, first, number);
#for c in range(head_dim // 4)
        add_to_a(${c}u);
#endfor
    }
    end_row(tile, 0u, own.x);
    end_row(tile, 1u, own.y);
    end_row(tile, 2u, own.z);
    end_row(tile, 3u, own.w);
}
