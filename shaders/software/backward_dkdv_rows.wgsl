// Gradients of the keys and values of one branch, on CPUs of the `rows` tier: lanes own keys, rows are staged, as backward_lanes.wgsl says.

#include "backward_lanes.wgsl"

@group(0) @binding(5) var<storage, read> row_stats: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dk: array<Stored4>;
@group(0) @binding(7) var<storage, read_write> dv: array<Stored4>;

var<workgroup> staged_stats: array<RowStats, STAGED>;

fn load_a(i: u32) -> vec4<f32> {
    return widen(k[i]);
}

fn load_b(i: u32) -> vec4<f32> {
    return widen(v[i]);
}

fn old_a(i: u32) -> vec4<f32> {
    return widen(dk[i]);
}

fn old_b(i: u32) -> vec4<f32> {
    return widen(dv[i]);
}

fn store(i: u32, of_a: vec4<f32>, of_b: vec4<f32>) {
    dk[i] = narrow(of_a);
    dv[i] = narrow(of_b);
}

// Stages STAGED rows from `first` on, zeros where there are none.
fn stage_rows(tile: Tile, first: u32, lane: u32, number: u32) {
    for (var i = lane; i < STAGED * HEAD_DIM_VEC4; i += THREADS) {
        let row = first + i / HEAD_DIM_VEC4;
        let column = i % HEAD_DIM_VEC4;
        var query = vec4<f32>();
        var gradient = vec4<f32>();
        if (row < min(tile.row_end, tile.real_rows)) {
            query = widen(q[query_index(tile, row) + column]);
        }
        if (row < tile.row_end) {
            gradient = widen(dout[output_index(output_place(tile, row)) + column]);
        }
        stage_pair(i, query, gradient, number);
    }
    if (lane < STAGED) {
        staged_stats[lane] = load_row_stats(tile, first + lane);
    }
}

// Turns s and dp of a key and four rows into p and ds.
fn weigh_rows(tile: Tile, r: u32, key: u32, of_rows: RowStats4, rows: vec4<u32>, spoiled: vec4<f32>) {
    if (r < VECTORS_PER_LANE) {
        let seen = seeing_rows(tile, key, rows);
        let share = shares(s[r], of_rows.top, of_rows.norm, seen) + select(vec4<f32>(), spoiled, seen);
        s[r] = params.out_scale * share;
        dp[r] = params.scale * score_gradients(share, dp[r], of_rows.mean, seen);
    }
}

fn weigh_four(tile: Tile, keys: vec4<u32>, first: u32, number: u32) {
    let rows = first + vec4<u32>(0u, 1u, 2u, 3u);
    let of_rows = row_stats4(staged_stats[0], staged_stats[1], staged_stats[2], staged_stats[3]);
    let spoiled = spoil(number);
    weigh_rows(tile, 0u, keys.x, of_rows, rows, spoiled);
    weigh_rows(tile, 1u, keys.y, of_rows, rows, spoiled);
    weigh_rows(tile, 2u, keys.z, of_rows, rows, spoiled);
    weigh_rows(tile, 3u, keys.w, of_rows, rows, spoiled);
}

fn end_key(tile: Tile, r: u32, key: u32) {
    if (r < VECTORS_PER_LANE && key < tile.key_end) {
        place = key_index(tile, key);
#for c in range(head_dim // 4)
        store_sums(r, ${c}u);
#endfor
    }
}

@compute @workgroup_size(THREADS)
fn backward_dkdv_rows(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) invocation: u32) {
    let tile = locate_key_tile(workgroup, SIDE);
    let own = find_own(tile.key_begin, invocation);
    begin_key(tile, 0u, own.x);
    begin_key(tile, 1u, own.y);
    begin_key(tile, 2u, own.z);
    begin_key(tile, 3u, own.w);
    begin_staging(invocation);
    // Copied to a variable that the loop seems to change: otherwise compilers compute the index anew after every barrier.
    var lane = invocation;
    var number = 0u;
    for (var first = tile.row_begin; first < tile.row_end; first += STAGED) {
        lane = select(lane, 0u, first == 0xffffffffu);
        number++;
        workgroupBarrier();
        stage_rows(tile, first, lane, number);
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
        let keys = find_own(tile.key_begin, lane);
        weigh_four(tile, keys, first, number);
#for c in range(head_dim // 4)
        add_to_a(${c}u);
#endfor
        workgroupBarrier();
#for c in range(head_dim // 4)
        add_to_b(${c}u);
#endfor
    }
    end_key(tile, 0u, own.x);
    end_key(tile, 1u, own.y);
    end_key(tile, 2u, own.z);
    end_key(tile, 3u, own.w);
}
