// Cooperative matrices of 8 x 8: f16 factors, f32 sums. All lanes of a subgroup hold one together.

const SIZE: u32 = 8u;
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sum = coop_mat8x8<f32, C>;
