// Number of this workgroup in its dispatch. A dispatch may be submitted in parts; then a part begins at first_workgroup.
fn workgroup_number(workgroup: vec3<u32>) -> u32 {
    return params.first_workgroup + workgroup.x + workgroup.y * params.grid_width;
}
