// Number of this workgroup among all of its dispatch. A dispatch that is submitted in parts begins at first_workgroup.
fn workgroup_number(workgroup: vec3<u32>) -> u32 {
    return params.first_workgroup + workgroup.x + workgroup.y * params.grid_width;
}
